"""Gathers what is known of requests that have ended, and stores it in batches, off the path."""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Protocol

import structlog

from hivemind.servers.common.errors import MeshError
from hivemind.servers.router.conversation import Conversation, redacted
from hivemind.servers.router.nomination import Nomination
from hivemind.servers.router.outcomes import Outcome
from hivemind.servers.router.records import Record
from hivemind.servers.router.skills import Lesson

_log = structlog.get_logger()

WAITING_MAX: Final = 20_000
TALKS_WAITING_MAX: Final = 2_000
"""Entries that wait above which no conversation is kept any more: texts are large, records are not."""
BATCH_MAX: Final = 500
_LOOK_S: Final = 0.02


@dataclass(frozen=True, slots=True)
class Entry:
    """A record, with the conversation where it is kept, its nomination, what it taught of models, and what was seen of
    adapters, if anything."""

    record: Record
    conversation: Conversation | None = None
    nomination: Nomination | None = None
    lessons: tuple[Lesson, ...] = ()
    outcomes: tuple[Outcome, ...] = ()


class EntryStore(Protocol):
    """Where entries go; see ports.RecordStore."""

    async def append(self, entries: list[Entry]) -> None:
        """Stores a batch, or raises MeshError."""


class Recorder:
    """Stores entries in batches. Holds 20,000 at most; the oldest go first."""

    def __init__(self, store: EntryStore, *, flush_s: float, on_drop: Callable[[int], None]) -> None:
        self._store, self._flush_s, self._on_drop = store, flush_s, on_drop
        self._waiting: deque[Entry] = deque()
        self._arrived = asyncio.Event()

    def add(self, entry: Entry) -> None:
        """Takes an entry; never waits."""
        if len(self._waiting) >= WAITING_MAX:
            self._waiting.popleft()
            self._on_drop(1)
        if entry.conversation is not None and len(self._waiting) >= TALKS_WAITING_MAX:
            entry = replace(entry, conversation=None)
        self._waiting.append(entry)
        self._arrived.set()

    def find(self, request_id: str) -> Record | None:
        """A record that is not stored yet."""
        return next((e.record for e in self._waiting if e.record.request_id == request_id), None)

    async def stored(self, request_id: str, *, within_s: float) -> None:
        """Returns when a record, with its conversation, no longer waits to be stored, or when the time is over."""
        end = asyncio.get_running_loop().time() + within_s
        while True:
            if self.find(request_id) is None or asyncio.get_running_loop().time() >= end:
                return
            await asyncio.sleep(_LOOK_S)

    async def flush(self) -> bool:
        """Stores what waits; True if nothing waits any more."""
        while self._waiting:
            batch = [self._waiting[i] for i in range(min(BATCH_MAX, len(self._waiting)))]
            try:
                await self._store.append(await _without_secrets(batch))
            except MeshError as error:
                _log.warning("records_wait", reason=error.reason, waiting=len(self._waiting))
                return False
            for entry in batch:
                if self._waiting and self._waiting[0] is entry:
                    self._waiting.popleft()
        return True

    async def run(self) -> None:
        """Stores for ever; after a failure it waits a second."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            await asyncio.sleep(self._flush_s)
            if not await self.flush():
                await asyncio.sleep(1.0)
                self._arrived.set()


async def _without_secrets(batch: list[Entry]) -> list[Entry]:
    """The batch with its conversations redacted, in a thread: a text full of numbers takes milliseconds."""
    if all(entry.conversation is None for entry in batch):
        return batch
    return await asyncio.to_thread(lambda: [_redacted(entry) for entry in batch])


def _redacted(entry: Entry) -> Entry:
    return entry if entry.conversation is None else replace(entry, conversation=redacted(entry.conversation))
