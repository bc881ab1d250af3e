"""Runs jobs as processes of this machine, each in a session and with a keeper of its own (launcher.py).

Processes are started by `subprocess` from a thread, without code between fork and exec: gRPC does not survive a fork.
"""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from hivemind.servers.trainer import launcher
from hivemind.servers.trainer.jobs import EXIT_INTERRUPTED, Ended
from hivemind.servers.trainer.json_file import read_object
from hivemind.servers.trainer.launcher import EXIT_FILE, PROCESS_FILE, start_ticks
from hivemind.servers.trainer.order import CPU, GPU, Lane
from hivemind.servers.trainer.output import last_line
from hivemind.servers.trainer.ports import Running

LOG_FILE: Final = "log.jsonl"
OUTPUT_FILE: Final = "job.log"
HEARTBEAT_FILE: Final = "heartbeat"
LOG_CHUNK: Final = 256 * 1024
_ASK_GPU: Final = ("--query-gpu=memory.free,memory.total", "--format=csv,noheader,nounits")
_ASK_GPU_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Machine:
    """What this machine gives to jobs. `gpu_free_mib`: GPU memory that has to be free before a job starts; `grace_s`:
    seconds for a job to write its checkpoint when it is asked to end."""

    cpu: Lane
    gpu: Lane
    gpu_free_mib: int = 8192
    grace_s: float = 8.0
    niceness: int = 10


@dataclass(slots=True)
class LocalExecutor:
    """Implements ports.Executor. `command`: the program of a job, which is given `--run FOLDER`."""

    home: Path
    command: Sequence[str]
    machine: Machine
    environment: Mapping[str, str]
    _children: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def place(self) -> str:
        """See ports.Executor."""
        return f"{socket.gethostname()}:{self.home}"

    async def lanes(self) -> Sequence[Lane]:
        """See ports.Executor."""
        lanes = [self.machine.cpu]
        if shutil.which("nvidia-smi", path=self.environment.get("PATH")) and await self._gpu_memory():
            lanes.append(self.machine.gpu)
        return lanes

    async def room(self, lane: str) -> str:
        """See ports.Executor."""
        if lane != GPU:
            return ""
        free, total = max(await self._gpu_memory(), default=(0, 0))
        if free >= self.machine.gpu_free_mib:
            return ""
        return f"waits for GPU memory: {free} of {total} MiB are free, {self.machine.gpu_free_mib} are needed"

    async def start(self, job_id: str) -> str:
        """See ports.Executor."""
        return await asyncio.to_thread(self._start, self._folder(job_id))

    async def poll(self, job_id: str, handle: str) -> Running | Ended:
        """See ports.Executor."""
        return await asyncio.to_thread(self._poll, self._folder(job_id), json.loads(handle))

    async def stop(self, handle: str) -> None:
        """See ports.Executor."""
        _signal(json.loads(handle), signal.SIGTERM)

    async def kill(self, handle: str) -> None:
        """See ports.Executor. The keeper's death is the job's."""
        _signal(json.loads(handle), signal.SIGKILL)

    async def logs(self, job_id: str, offset: int) -> bytes:
        """See ports.Executor."""
        return await asyncio.to_thread(_read, self._folder(job_id) / LOG_FILE, offset)

    def _folder(self, job_id: str) -> Path:
        return self.home / "runs" / job_id

    def _start(self, folder: Path) -> str:
        known = read_object(folder / PROCESS_FILE)
        if known is not None and _lives(known):
            return _handle(known)
        (folder / EXIT_FILE).unlink(missing_ok=True)
        keeper = (sys.executable, "-I", launcher.__file__, str(folder), str(self.machine.grace_s))
        command = (*keeper, str(self.machine.niceness), *self.command, "--run", str(folder))
        with (folder / OUTPUT_FILE).open("ab") as output:
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=folder,
                env=dict(self.environment), start_new_session=True,
            )  # fmt: skip
        self._children[child.pid] = child
        return _handle({"pid": child.pid, "ticks": start_ticks(child.pid)})

    def _poll(self, folder: Path, handle: dict[str, Any]) -> Running | Ended:
        child = self._children.get(handle["pid"])
        if child is not None and child.poll() is not None:
            del self._children[handle["pid"]]
        if _lives(handle):
            began_s = handle["ticks"] / os.sysconf("SC_CLK_TCK")
            return Running(time.clock_gettime(time.CLOCK_BOOTTIME) - began_s, _sign_of_life(folder))
        left = read_object(folder / EXIT_FILE)
        words = last_line(folder / OUTPUT_FILE, most=1000)
        if left is None or (left.get("pid"), left.get("ticks")) != (handle["pid"], handle["ticks"]):
            return Ended(None, last_words=words)
        late = left.get("asked") and left["code"] < 0  # it was to end and took too long, which is no crash
        return Ended(EXIT_INTERRUPTED if late else left["code"], bool(left.get("out_of_memory")), words)

    async def _gpu_memory(self) -> list[tuple[int, int]]:
        """Free and total MiB of each GPU; empty if there is none."""
        return await asyncio.to_thread(_gpu_memory, dict(self.environment))


def lanes_of(
    *, cpu_jobs: int, gpu_jobs: int, cpu_price_micros: int, gpu_price_micros: int
) -> tuple[Lane, Lane]:  # fmt: skip
    """The two lanes of a machine: of its CPU and of its GPU. Prices are micro-USD an hour."""
    return Lane(CPU, cpu_jobs, cpu_price_micros), Lane(GPU, gpu_jobs, gpu_price_micros)


def _gpu_memory(environment: Mapping[str, str]) -> list[tuple[int, int]]:
    try:
        answer = subprocess.run(
            ("nvidia-smi", *_ASK_GPU), capture_output=True, text=True, check=True, timeout=_ASK_GPU_S, env=environment
        )
        return [(int(free), int(total)) for free, total in (ln.split(",") for ln in answer.stdout.splitlines() if ln)]
    except (OSError, ValueError, subprocess.SubprocessError):
        return []


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _handle(process: Mapping[str, Any]) -> str:
    return json.dumps({"pid": process["pid"], "ticks": process["ticks"], "boot": _boot_id()})


def _lives(process: Mapping[str, Any]) -> bool:
    same_boot = process.get("boot", _boot_id()) == _boot_id()
    return same_boot and process["ticks"] is not None and start_ticks(process["pid"]) == process["ticks"]


def _signal(handle: dict[str, Any], number: signal.Signals) -> None:
    if _lives(handle):
        with suppress(ProcessLookupError):
            os.kill(handle["pid"], number)


def _sign_of_life(folder: Path) -> float:
    """When the run last wrote to its log or touched its heartbeat; only that it changes means anything."""
    stamps = [0.0]
    for name in (HEARTBEAT_FILE, LOG_FILE):
        with suppress(OSError):
            stamps.append((folder / name).stat().st_mtime)
    return max(stamps)


def _read(file: Path, offset: int) -> bytes:
    try:
        with file.open("rb") as opened:
            opened.seek(offset)
            return opened.read(LOG_CHUNK)
    except FileNotFoundError:
        return b""
