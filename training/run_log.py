"""What a run tells while it goes: `log.jsonl`, one event a line, and `heartbeat`, whose time shows that it lives."""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

LOG_FILE: Final = "log.jsonl"
HEARTBEAT_FILE: Final = "heartbeat"
BEAT_S: Final = 2.0


class RunLog:
    """Appends events; `clock` answers Unix seconds. A torn last line, left by a kill, is ended first."""

    def __init__(self, run: Path, clock: Callable[[], float] = time.time) -> None:
        self.path, self._clock = run / LOG_FILE, clock
        if self.path.exists() and self.path.read_bytes()[-1:] not in (b"", b"\n"):
            with self.path.open("ab") as file:
                file.write(b"\n")

    def event(self, name: str, /, **fields: object) -> None:
        """Adds one line, whole or not at all."""
        line = json.dumps({"event": name, **fields, "time": round(self._clock(), 3)}, ensure_ascii=False) + "\n"
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(handle, line.encode())
        finally:
            os.close(handle)

    def losses(self) -> dict[int, float]:
        """The loss by step that the log tells; of a step that was done twice the last."""
        return {e["step"]: e["loss"] for e in read_events(self.path) if e.get("event") == "step"}


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """The events of a log; lines that are broken are left out."""
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict):
            yield event


@contextmanager
def heartbeat(run: Path) -> Iterator[None]:
    """Touches the file every two seconds, from a thread, since a step on a busy CPU takes longer."""
    path, ended = run / HEARTBEAT_FILE, threading.Event()

    def beat() -> None:
        while True:
            path.touch()
            if ended.wait(BEAT_S):
                return

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
