"""The process of a learner: started with a pipe for its standard input, whose end is the process's end."""

import asyncio
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from hivemind.servers.trainer.output import last_line

OUTPUT_FILE: Final = "learner.log"
_OUTPUT_MAX: Final = 1 << 20


@dataclass(slots=True)
class LearnerProcess:
    """One learner's process. `command`: its program; `grace_s`: seconds to save its state when it is to end."""

    folder: Path
    command: Sequence[str]
    environment: Mapping[str, str]
    grace_s: float
    _child: subprocess.Popen[bytes] | None = field(default=None)

    @property
    def lives(self) -> bool:
        """Whether it runs."""
        return self._child is not None and self._child.poll() is None

    @property
    def exit_code(self) -> int | None:
        """How it ended; None while it runs, or before it was started."""
        return None if self._child is None else self._child.poll()

    async def start(self) -> None:
        """Starts it; OSError where that fails."""
        self._child = await asyncio.to_thread(self._start)

    async def end(self) -> None:
        """Has it save its state and end; kills it after the grace. Nothing to do where it does not run."""
        child, self._child = self._child, None
        if child is None:
            return
        with suppress(OSError):
            child.terminate()
        try:
            await asyncio.to_thread(child.wait, self.grace_s)
        except subprocess.TimeoutExpired:
            child.kill()
            await asyncio.to_thread(child.wait)
        if child.stdin is not None:
            child.stdin.close()

    def last_words(self) -> str:
        """The last line that it wrote."""
        return last_line(self.folder / OUTPUT_FILE, most=500)

    def _start(self) -> subprocess.Popen[bytes]:
        self.folder.mkdir(parents=True, exist_ok=True)
        output = self.folder / OUTPUT_FILE
        keep = "ab" if output.exists() and output.stat().st_size < _OUTPUT_MAX else "wb"
        with output.open(keep) as file:
            return subprocess.Popen(
                self.command, stdin=subprocess.PIPE, stdout=file, stderr=file, cwd=self.folder,
                env=dict(self.environment), start_new_session=True,
            )  # fmt: skip
