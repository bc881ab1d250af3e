"""Keeps processes running: starts them again when they die, ends them in order. docs/adr/0005 says why it is our own.

The supervisor runs one event loop in one thread and uses no gRPC, so that it may fork.
"""

import asyncio
import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

LONGEST_WAIT_S: Final = 10.0
HEALTHY_AFTER_S: Final = 10.0
LOG_MAX_BYTES: Final = 20 << 20
_FIRST_WAIT_S: Final = 0.25
_PR_SET_PDEATHSIG: Final = 1
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Child:
    """A process to keep: its name, command and environment, the file its output goes to, and how it is told to end."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    stop_signal: signal.Signals = signal.SIGTERM


@dataclass(slots=True)
class RestartPolicy:
    """When a process that died is started again: at once the first time, then after 0.25 s doubling up to 10 s; never
    given up. One that lived 10 s counts as healthy, and the next death is a first one."""

    deaths: int = 0

    def wait_s(self, lived_s: float) -> float:
        """Seconds to wait before the next start of a process that lived so long."""
        if lived_s >= HEALTHY_AFTER_S:
            self.deaths = 0
        self.deaths += 1
        if self.deaths == 1:
            return 0.0
        return float(min(LONGEST_WAIT_S, _FIRST_WAIT_S * 2 ** min(self.deaths - 2, 16)))


@dataclass(slots=True)
class _Kept:
    child: Child
    task: "asyncio.Task[None]"
    process: asyncio.subprocess.Process | None = None
    ending: bool = False
    restarts: int = 0


@dataclass(slots=True)
class Supervisor:
    """Runs children. `on_death` hears the name, exit code and wait of each that died unasked."""

    on_death: Callable[[str, int, float], None]
    clock: Callable[[], float] = time.monotonic
    _kept: dict[str, _Kept] = field(default_factory=dict)

    def start(self, child: Child) -> None:
        """Starts a child and keeps it running from now on."""
        _rotate(child.log)
        task = asyncio.create_task(self._keep(child.name))
        self._kept[child.name] = _Kept(child, task)

    def pids(self) -> dict[str, int]:
        """The processes that run now."""
        return {
            n: k.process.pid for n, k in self._kept.items() if k.process is not None and k.process.returncode is None
        }

    def restarts(self, name: str) -> int:
        """How often a child was started again."""
        return self._kept[name].restarts

    async def stop(self, names: Sequence[str], *, limit_s: float) -> None:
        """Ends children together; what is left after `limit_s` seconds is killed."""
        kept = [self._kept[name] for name in names if name in self._kept]
        for one in kept:
            one.ending = True
            if one.process is None or one.process.returncode is not None:
                one.task.cancel()
            else:
                _signal(one.process, one.child.stop_signal)
        tasks = [one.task for one in kept]
        if not tasks:
            return
        _, late = await asyncio.wait(tasks, timeout=limit_s)
        for one in kept:
            if one.task in late and one.process is not None:
                _signal(one.process, signal.SIGKILL)
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _keep(self, name: str) -> None:
        kept, policy = self._kept[name], RestartPolicy()
        while not kept.ending:
            began = self.clock()
            kept.process = await _spawn(kept.child)
            code = await kept.process.wait()
            if kept.ending:
                return
            wait_s = policy.wait_s(self.clock() - began)
            kept.restarts += 1
            self.on_death(name, code, wait_s)
            await asyncio.sleep(wait_s)


async def _spawn(child: Child) -> asyncio.subprocess.Process:
    """A session of its own, so that Ctrl-C in the terminal reaches the supervisor alone."""
    with child.log.open("ab") as log:
        return await asyncio.create_subprocess_exec(
            *child.command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=dict(child.environment),
            cwd=child.environment["HIVEMIND_HOME"],
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )


def _die_with_parent() -> None:
    """Has the kernel end this process when the supervisor dies, even by SIGKILL."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)


def _rotate(log: Path) -> None:
    """Keeps one older file, so that logs stay bounded over restarts of the mesh."""
    with contextlib.suppress(FileNotFoundError):
        if log.stat().st_size > LOG_MAX_BYTES:
            os.replace(log, log.with_suffix(".1.log"))
