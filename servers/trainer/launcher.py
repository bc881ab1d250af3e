"""Stands between the Trainer and the process of one job, and outlives the Trainer:

    python -I launcher.py RUN_FOLDER GRACE_S NICENESS COMMAND...

It is run by its path, so that whoever looks for the Trainer's processes by module does not find, and kill, this one.
It holds the lock of the run folder, so that no second process ever works in it, hands SIGTERM on and kills what has not
ended after the grace, and leaves the exit code in `exit.json`, where the next Trainer finds it. Standard library only.
"""

import ctypes
import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType
from typing import Final

EXIT_FILE: Final = "exit.json"
PROCESS_FILE: Final = "process.json"
LOCK_FILE: Final = "lock"
BUSY: Final = 75
_PR_SET_PDEATHSIG: Final = 1
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


class Keeper:
    """Keeps one child. Signals may come at any moment, also before it is there. `asked`: it was to end."""

    def __init__(self, grace_s: float) -> None:
        self._grace_s, self.asked = grace_s, False
        self._child: subprocess.Popen[bytes] | None = None
        signal.signal(signal.SIGTERM, self._on_term)
        signal.signal(signal.SIGALRM, self._on_alarm)

    def run(self, command: list[str]) -> int:
        """Runs it to its end; its exit code, negative for a signal."""
        self._child = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=_die_with_parent)
        if self.asked:
            self._end_gently()
        return self._child.wait()

    def _on_term(self, _number: int, _frame: FrameType | None) -> None:
        self.asked = True
        if self._child is not None:
            self._end_gently()

    def _on_alarm(self, _number: int, _frame: FrameType | None) -> None:
        if self._child is not None:
            self._child.kill()

    def _end_gently(self) -> None:
        if self._child is not None and self._child.returncode is None:
            self._child.terminate()
            signal.setitimer(signal.ITIMER_REAL, self._grace_s)


def start_ticks(pid: int) -> int | None:
    """When a process began, in clock ticks since boot (man 5 proc, field 22); None if there is none, or its remains.

    Unlike a time of day it does not move when the clock is set.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[19])


def oom_kills() -> int:
    """How often the kernel has killed something for want of memory since boot; 0 where it does not say."""
    try:
        lines = Path("/proc/vmstat").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def write_whole(path: Path, data: dict[str, object]) -> None:
    """Writes a small JSON file so that a reader sees all of it or none."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(json.dumps(data), encoding="utf-8")
    aside.replace(path)


def main(arguments: list[str]) -> int:
    """The whole of it."""
    folder, grace_s, niceness, *command = arguments
    run = Path(folder)
    lock = os.open(run / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return BUSY
    keeper = Keeper(float(grace_s))
    me: dict[str, object] = {"pid": os.getpid(), "ticks": start_ticks(os.getpid())}
    write_whole(run / PROCESS_FILE, me)
    os.nice(int(niceness))
    before = oom_kills()
    code = keeper.run(command)
    write_whole(run / EXIT_FILE, {**me, "code": code, "asked": keeper.asked, "out_of_memory": oom_kills() > before})
    return 0


def _die_with_parent() -> None:
    """Has the kernel kill the job if its keeper is killed: nobody would know of it any more."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
