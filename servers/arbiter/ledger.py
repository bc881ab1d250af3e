"""The platinum ledger for an event loop: appends are gathered and share one sync, file work is done in a thread."""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

import structlog

from hivemind.servers.arbiter.bell import Bell
from hivemind.servers.arbiter.example import Example, NewExample
from hivemind.servers.arbiter.folder import LedgerFolder
from hivemind.servers.arbiter.lines import Tombstone
from hivemind.servers.arbiter.platinum_metrics import PlatinumMetrics
from hivemind.servers.arbiter.shelf import Counts, Selection
from hivemind.servers.common.errors import MeshError, not_found

_log = structlog.get_logger()

T = TypeVar("T")
WAITING_MAX: Final = 4096
BATCH_MAX: Final = 512
_READ_BYTES: Final = 1 << 20
_READ_LINES: Final = 128
_PAGE_BYTES: Final = 3 << 20
"""Clients take no message above 4 MiB unless they are told to."""


class Ledger:
    """Implements ports.PlatinumLedger and ports.PlatinumReader over the files of a folder.

    `bell` rings when examples were stored, here or, seen by `follow`, by another process.
    """

    def __init__(self, folder: LedgerFolder, bell: Bell, metrics: PlatinumMetrics, *, poll_s: float) -> None:
        self._folder, self._bell, self._metrics, self._poll_s = folder, bell, metrics, poll_s
        self._files = ThreadPoolExecutor(1, "ledger")
        self._readers = ThreadPoolExecutor(4, "ledger-read")
        self._waiting: list[tuple[NewExample, asyncio.Future[Example]]] = []
        self._committing: asyncio.Task[None] | None = None

    async def append(self, new: NewExample) -> Example:
        """See ports.PlatinumLedger."""
        if len(self._waiting) >= WAITING_MAX:
            raise MeshError("STORE_UNAVAILABLE", "too many examples wait for the ledger's disk", retry_after_s=1.0)
        stored: asyncio.Future[Example] = asyncio.get_running_loop().create_future()
        self._waiting.append((new, stored))
        if self._committing is None:
            self._committing = asyncio.create_task(self._commit_all())
        return await stored

    def repeated(self, tenant: str, idempotency_key: str, fingerprint: str) -> Example | None:
        """See ports.PlatinumLedger."""
        return self._folder.shelf.repeated(tenant, idempotency_key, fingerprint)

    @property
    def last_sequence(self) -> int:
        """See ports.PlatinumReader."""
        return self._folder.shelf.last_sequence

    @property
    def missing(self) -> str:
        """What the ledger waits for before it can be used; empty: nothing."""
        return "" if self._folder.shelf.segments else "the ledger is not open yet"

    def examples_above(self, sequence: int) -> int:
        """See ports.PlatinumReader."""
        return self._folder.shelf.examples_above(sequence)

    @property
    def forgettings(self) -> int:
        """See ports.PlatinumReader."""
        return self._folder.shelf.forgettings

    def is_learnable(self, sequence: int) -> bool:
        """See ports.PlatinumReader."""
        return self._folder.shelf.is_learnable(sequence)

    async def read(self, sequences: Sequence[int]) -> list[tuple[int, Example | None]]:
        """See ports.PlatinumReader. Only the reading is a thread's: parsing there would fight for the interpreter."""
        shelf, some = self._folder.shelf, sequences[:_READ_LINES]
        if max(some) > shelf.last_sequence:
            await self.refresh()  # another process has stored them
        spots = shelf.spots(some, most_bytes=_READ_BYTES)
        lines = await self._read(lambda: [None if spot is None else spot.read() for spot in spots])
        pairs = zip(some, lines, strict=False)
        return [(s, None if line is None else shelf.parsed(s, line)) for s, line in pairs]

    async def newest(self, per_tenant: int) -> tuple[list[int], int]:
        """See ports.PlatinumReader."""
        last = self.last_sequence
        await self.refresh()  # behind whatever the writer has in hand: what tombstones up to `last` name is gone then
        count = per_tenant or last
        return await self._read(lambda: self._folder.shelf.newest(count, upto=last)), last

    async def following(self, after: int) -> tuple[list[Example | Tombstone], int]:
        """See ports.PlatinumReader."""
        shelf = self._folder.shelf
        spots, upto = shelf.following(after, lines=_READ_LINES, most_bytes=_READ_BYTES)
        lines = await self._read(lambda: [spot.read() for _, spot in spots]) if spots else []
        told = [shelf.told(s, line) for (s, _), line in zip(spots, lines, strict=True)]
        return [found for found in told if found is not None], upto

    async def find(self, name: str) -> Example | None:
        """The example with an id."""
        return await self._read(lambda: self._folder.shelf.find(name))

    async def page(self, wanted: Selection, *, below: int | None, size: int) -> tuple[list[Example], int | None]:
        """Examples, newest first, from below a sequence, as many as fit into an answer; and what to go on below, None
        at the end."""
        shelf = self._folder.shelf
        end = shelf.last_sequence + 1 if below is None else below

        def found() -> tuple[list[Example], int | None]:
            sequences = shelf.select(wanted, below=end, count=size + 1)
            spots = shelf.spots(sequences[:size], most_bytes=_PAGE_BYTES)
            pairs = zip(sequences, spots, strict=False)
            examples = [e for s, spot in pairs if spot and (e := shelf.parsed(s, spot.read()))]
            return examples, sequences[len(spots) - 1] if len(sequences) > len(spots) else None

        return await self._read(found)

    async def counts(self) -> Counts:
        """Sums over the whole ledger."""
        return await self._read(self._folder.shelf.counts)

    async def forget(self, wanted: Selection | str, *, reason: str, tenant: str, rotate: bool) -> list[str]:
        """Forgets the example with an id, or all of a selection; see LedgerFolder.forget. NOT_FOUND_RESOURCE for an id
        that never was; none is answered for one that is forgotten already."""
        ids = await self._write(lambda: self._folder.forget(wanted, reason=reason, tenant=tenant, rotate=rotate))
        if isinstance(wanted, str) and not ids and (tenant or not self._folder.shelf.knows(wanted)):
            raise not_found("platinum example", wanted)
        return ids

    async def refresh(self) -> None:
        """Takes in what other processes wrote, if they did."""
        if await self._write(self._take_in):
            self._bell.ring()

    async def follow(self) -> None:
        """Opens the ledger, then looks for what other processes write, for ever; outlives a disk that refuses."""
        lost = False
        while True:
            try:
                await self.refresh()
                lost = False
            except MeshError as error:
                if not lost:
                    _log.warning("ledger_unavailable", reason=error.reason, problem=error.message)
                lost = True
            self._metrics.bad_lines.set(self._folder.shelf.bad_lines)
            await asyncio.sleep(self._poll_s)

    async def close(self) -> None:
        """Ends when all that waits is stored or refused."""
        if self._committing is not None:
            await asyncio.wait([self._committing])
        self._files.shutdown(wait=False)
        self._readers.shutdown(wait=False)

    def _take_in(self) -> bool:
        if not self._folder.changed_outside():
            return False
        self._folder.refresh()
        return True

    async def _commit_all(self) -> None:
        try:
            while self._waiting:
                batch = self._waiting[:BATCH_MAX]
                del self._waiting[:BATCH_MAX]
                await self._commit([b for b in batch if not b[1].done()])
        finally:
            self._committing = None

    async def _commit(self, batch: list[tuple[NewExample, asyncio.Future[Example]]]) -> None:
        began = time.perf_counter()
        answers: Sequence[Example | Exception]
        try:
            answers = await self._write(lambda: self._folder.commit([new for new, _ in batch]))
        except Exception as error:  # each caller is told; the next batch is tried again
            answers = [error] * len(batch)
            self._metrics.refused.inc(len(batch))
        self._metrics.commit_seconds.observe(time.perf_counter() - began)
        for (_, stored), answer in zip(batch, answers, strict=True):
            if stored.done():
                continue
            if isinstance(answer, Example):
                stored.set_result(answer)
            else:
                stored.set_exception(answer)
        self._bell.ring()

    async def _write(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._files, work)

    async def _read(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._readers, work)
