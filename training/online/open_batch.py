"""The batch that the learner is filling."""

import time
from collections.abc import Collection

from hivemind.servers.trainer.lesson import Lesson
from hivemind.training.online.inbox import Inbox, Waiting


class OpenBatch:
    """Lessons that were read from the inbox and not taken over yet. It is full with `size` of them, and old `wait_s`
    seconds after the first."""

    def __init__(self, inbox: Inbox, *, size: int, wait_s: float) -> None:
        self._inbox, self._size, self._wait_s = inbox, size, wait_s
        self._waiting: list[Waiting] = []
        self._since = 0.0

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def is_due(self) -> bool:
        """Whether it is full or old."""
        old = bool(self._waiting) and time.monotonic() - self._since >= self._wait_s
        return len(self._waiting) >= self._size or old

    @property
    def replaced(self) -> set[str]:
        """The ids of lessons that those in the batch show to be wrong."""
        return {w.replaces for w in self._waiting if w.replaces}

    @property
    def lessons(self) -> list[Lesson]:
        """Those that can be read and are not replaced by one that came after them."""
        wrong = self.replaced
        return [w.lesson for w in self._waiting if w.lesson is not None and w.lesson.id not in wrong]

    def fill(self, cursor: str) -> None:
        """Takes what waits behind a place of the inbox, as far as there is room."""
        room = self._size - len(self._waiting)
        new = self._inbox.waiting(self._waiting[-1].place if self._waiting else cursor, room) if room else ()
        if new and not self._waiting:
            self._since = time.monotonic()
        self._waiting += new

    def close(self) -> str:
        """Empties it; the place of its last lesson."""
        place = self._waiting[-1].place
        self._waiting = []
        return place

    def forget(self, names: Collection[str]) -> None:
        """Drops lessons by their ids."""
        self._waiting = [w for w in self._waiting if w.lesson is not None and w.lesson.id not in names]
