"""Ends a run on SIGTERM or SIGINT: at once where nothing is lost, else at the next step, after a checkpoint."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(BaseException):
    """The run was told to end; it can be resumed. Not an Exception, so that no library takes it for a mishap."""


class StopSwitch:
    """Whether somebody wants the run to end."""

    def __init__(self) -> None:
        self.wanted = False
        self._deferred = False

    def install(self) -> None:
        """Listens to SIGTERM and SIGINT; of the main thread only."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """A signal within the block only sets `wanted`; the block ends itself where that is safe."""
        self.check()
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def check(self) -> None:
        """Raises Stopped if a signal came."""
        if self.wanted:
            raise Stopped

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.wanted = True
        if not self._deferred:
            raise Stopped
