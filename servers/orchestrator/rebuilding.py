"""Reads the whole ledger again, in pieces: what a time limit interrupts goes on from there."""

import asyncio
from collections.abc import Callable, Collection

from hivemind.servers.orchestrator.cognitive_map import LedgerPart
from hivemind.servers.orchestrator.domains import Tally
from hivemind.servers.orchestrator.ledger import Batch, LedgerReader, Place


class Rebuild:
    """First finds what was forgotten, then counts the rest. `part` is complete once `go_on` has answered."""

    def __init__(
        self, reader: LedgerReader, *, why: str, learners: Callable[[], Collection[str]], half_life_s: float
    ) -> None:
        self.why = why
        self._reader, self._learners, self._half_life_s = reader, learners, half_life_s
        self._forgotten: set[str] = set()
        self._scan: Batch | None = Batch(Place(), more=True)
        self.part = LedgerPart(Tally(half_life_s))

    async def go_on(self) -> None:
        """Reads to the end. OSError if the disk fails."""
        while self._scan is not None:
            self._scan = await self._scanned(self._scan)
        more = True
        while more:
            batch = await asyncio.to_thread(self._reader.read, self.part.place)
            if not batch.forgotten <= self._forgotten:
                self._forgotten |= batch.forgotten
                self.part = LedgerPart(Tally(self._half_life_s))  # forgotten while this was read: count again
                continue
            kept = [d for d in batch.drafts if d.id not in self._forgotten]
            self.part.count(kept, self._learners())
            self.part.place, more = batch.place, batch.more

    async def _scanned(self, scan: Batch) -> Batch | None:
        batch = await asyncio.to_thread(self._reader.read, scan.place)
        self._forgotten |= batch.forgotten
        return batch if batch.more else None
