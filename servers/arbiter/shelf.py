"""What the ledger holds and where: finds lines, reads them. Any thread may call it; only the folder's writer adds."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import structlog

from hivemind.servers.arbiter.disk import Handle, read_exactly, refused
from hivemind.servers.arbiter.example import REFINERS, Example
from hivemind.servers.arbiter.lines import BadLine, Stub, Tombstone, id_high, is_line_id, parse
from hivemind.servers.arbiter.segment import ABSENT, DOOMED, EXAMPLE, GONE, MARKER, Names, Rows, Segment, short_hash
from hivemind.servers.common.errors import MeshError

_log = structlog.get_logger()

KEY_TTL_MS: Final = 24 * 3600 * 1000


@dataclass(frozen=True, slots=True)
class Selection:
    """Examples of a tenant, a domain or a request; empty: any."""

    tenant: str = ""
    domain: str = ""
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class Counts:
    """What stands in the ledger. `forgotten` counts those whose texts are gone and those that wait for it."""

    examples: int
    forgotten: int
    last_sequence: int
    by_refined_by: dict[str, int]
    by_domain: dict[str, int]
    by_tenant: dict[str, int]
    cost_micros: int
    size_bytes: int
    bad_lines: int


@dataclass(frozen=True, slots=True)
class Spot:
    """Where a line lies. It stays readable while files are moved or rewritten."""

    handle: Handle
    offset: int
    length: int

    def read(self) -> bytes:
        """The bytes of the line; MeshError if the disk refuses."""
        try:
            return read_exactly(self.handle.fd, self.length, self.offset)
        except OSError as error:
            raise refused(error) from error


class Shelf:
    """The segments, oldest first, the active one last. `clock` answers Unix seconds.

    `forgettings` grows whenever an example is taken away.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.mutex = threading.RLock()
        self.names = Names()
        self.segments: tuple[Segment, ...] = ()
        self._recent_keys: dict[int, int] = {}
        self._unread: set[int] = set()
        self.forgettings = 0

    @property
    def active(self) -> Segment:
        """The segment that grows; STORE_UNAVAILABLE before the files were read."""
        if not self.segments:
            raise MeshError("STORE_UNAVAILABLE", "the ledger is not open yet; retry shortly", retry_after_s=1.0)
        return self.segments[-1]

    @property
    def last_sequence(self) -> int:
        """The newest sequence; 0 in an empty ledger."""
        with self.mutex:
            return self.active.last

    @property
    def bad_lines(self) -> int:
        """Lines that could not be read, at start or later."""
        with self.mutex:
            return sum(s.bad for s in self.segments) + len(self._unread)

    def is_learnable(self, sequence: int) -> bool:
        """Whether an example stands there that is not forgotten."""
        with self.mutex:
            return self._spot_of(sequence) is not None

    def spots(self, sequences: Sequence[int], *, most_bytes: int) -> list[Spot | None]:
        """Where the first of these examples lie, at least one and as many as hold that many bytes together."""
        found: list[Spot | None] = []
        with self.mutex:
            for sequence in sequences:
                spot = self._spot_of(sequence)
                most_bytes -= 0 if spot is None else spot.length
                if found and most_bytes < 0:
                    break
                found.append(spot)
        return found

    def read(self, sequence: int) -> Example | None:
        """The example of a sequence; None where none can be learnt from there. MeshError if the disk refuses."""
        spot = self.spots([sequence], most_bytes=0)[0]
        return None if spot is None else self.parsed(sequence, spot.read())

    def parsed(self, sequence: int, line: bytes) -> Example | None:
        """The example of a line that was read; None where it was changed, which is counted."""
        found = self.told(sequence, line)
        return found if isinstance(found, Example) else None

    def told(self, sequence: int, line: bytes) -> Example | Tombstone | None:
        """The example or tombstone of a line that was read; None where it was changed, which is counted."""
        try:
            found, _ = parse(line)
        except BadLine as error:
            self._report_bad(sequence, error)
            return None
        return found if not isinstance(found, Stub) and found.sequence == sequence else None

    def find(self, name: str) -> Example | None:
        """The example with an id."""
        sequence = self._sequence_of(name) if is_line_id(name) else None
        found = None if sequence is None else self.read(sequence)
        return found if found is not None and found.id == name else None

    def knows(self, name: str) -> bool:
        """Whether a line has this id, forgotten or not."""
        return is_line_id(name) and self._sequence_of(name) is not None

    def select(self, wanted: Selection, *, below: int, count: int) -> list[int]:
        """Sequences of examples, newest first: those smaller than `below`, at most `count`."""
        found: list[int] = []
        with self.mutex:
            for segment in reversed(self.segments):
                if len(found) < count and segment.first < below:
                    found += self._matches(segment, wanted, below)[: count - len(found)]
        return found

    def newest(self, per_tenant: int, *, upto: int) -> list[int]:
        """Sequences of examples, in order: so many of the newest of each tenant, none above `upto`."""
        found: list[int] = []
        with self.mutex:
            left = np.full(len(self.names.texts), per_tenant, np.int64)
            for segment in reversed(self.segments):
                rows = segment.rows[: max(0, upto + 1 - segment.first)]
                found += [segment.first + int(i) for i in _newest(rows, left)]
        return sorted(found)

    def following(self, after: int, *, lines: int, most_bytes: int) -> tuple[list[tuple[int, Spot]], int]:
        """Where examples and tombstones lie above a sequence, in order; and up to which sequence that is all."""
        found: list[tuple[int, Spot]] = []
        with self.mutex:
            end = min(self.active.last, after + lines)
            for sequence in range(after + 1, end + 1):
                spot = self._spot_of(sequence, (EXAMPLE, MARKER))
                most_bytes -= 0 if spot is None else spot.length
                if found and most_bytes < 0:
                    return found, sequence - 1
                if spot is not None:
                    found.append((sequence, spot))
        return found, max(after, end)

    def examples_above(self, sequence: int) -> int:
        """How many examples lie above a sequence."""
        with self.mutex:
            parts = [s.rows["kind"][max(0, sequence + 1 - s.first) :] for s in self.segments if s.last > sequence]
            return sum(int(np.count_nonzero(p == EXAMPLE)) for p in parts)

    def counts(self) -> Counts:
        """Sums over the whole ledger."""
        with self.mutex:
            all_rows, size = [s.rows for s in self.segments], sum(s.size for s in self.segments)
            texts, last, bad = tuple(self.names.texts), self.active.last, self.bad_lines
        kinds, refiners = np.zeros(GONE + 1, np.int64), np.zeros(len(REFINERS), np.int64)
        tenants, domains = np.zeros(len(texts), np.int64), np.zeros(len(texts), np.int64)
        cost = 0
        for rows in all_rows:
            kinds += np.bincount(rows["kind"], minlength=len(kinds))
            learnable = rows[rows["kind"] == EXAMPLE]
            refiners += np.bincount(learnable["refined_by"], minlength=len(refiners))
            tenants += np.bincount(learnable["tenant"], minlength=len(texts))
            domains += np.bincount(learnable["domain"], minlength=len(texts))
            cost += int(learnable["cost"].sum())
        return Counts(
            examples=int(kinds[EXAMPLE]),
            forgotten=int(kinds[DOOMED] + kinds[GONE]),
            last_sequence=last,
            by_refined_by={n: int(c) for n, c in zip(REFINERS, refiners, strict=True) if c},
            by_domain={texts[i]: int(domains[i]) for i in np.flatnonzero(domains)},
            by_tenant={texts[i]: int(tenants[i]) for i in np.flatnonzero(tenants)},
            cost_micros=cost,
            size_bytes=size,
            bad_lines=bad,
        )

    def repeated(self, tenant: str, key: str, fingerprint: str) -> Example | None:
        """See ports.PlatinumLedger."""
        found = self._with_key(tenant, key) if key else None
        if found is not None and found.new.fingerprint != fingerprint:
            raise key_reused()
        return found

    # For the writer.

    def replace(self, segments: tuple[Segment, ...]) -> None:
        """Takes other segments; the last one is the active one and not read yet."""
        self.segments, self._recent_keys = segments, {}

    def remember_key(self, key: int, sequence: int) -> None:
        """Notes the idempotency key of a new line by its hash."""
        if key:
            self._recent_keys[key] = sequence

    def remember_keys(self, start: int) -> None:
        """Notes the idempotency keys of the active segment from a row on."""
        active = self.active
        for index in np.flatnonzero(active.rows["key"][start:]):
            self._recent_keys[int(active.rows[start + int(index)]["key"])] = active.first + start + int(index)

    def take_in(self, tombstones: Sequence[bytes], *, start: int) -> None:
        """Heeds lines that were read: the active segment's from a row on, and what tombstones name."""
        self.remember_keys(start)
        for line in tombstones:
            with suppress(BadLine):
                found, _ = parse(line)
                for name in found.ids if isinstance(found, Tombstone) else ():
                    self.doom(name)

    def doom(self, name: str) -> None:
        """Takes an example away; its text is still on the disk."""
        sequence = self._sequence_of(name) if is_line_id(name) else None
        segment = None if sequence is None else self._segment_of(sequence)
        if sequence is not None and segment is not None:
            kinds = segment.rows["kind"]
            if kinds[sequence - segment.first] == EXAMPLE:
                kinds[sequence - segment.first] = DOOMED
                self.forgettings += 1

    def doomed(self) -> Iterator[Segment]:
        """The segments with texts that are to leave the disk."""
        return (s for s in self.segments if np.any(s.rows["kind"] == DOOMED))

    def _spot_of(self, sequence: int, kinds: Sequence[int] = (EXAMPLE,)) -> Spot | None:
        segment = self._segment_of(sequence)
        if segment is None:
            return None
        row = segment.row(sequence)
        return Spot(segment.handle, int(row["offset"]), int(row["length"])) if row["kind"] in kinds else None

    def _segment_of(self, sequence: int) -> Segment | None:
        return next((s for s in reversed(self.segments) if s.first <= sequence <= s.last), None)

    def _sequence_of(self, name: str) -> int | None:
        high = np.uint64(id_high(name))
        with self.mutex:
            for segment in reversed(self.segments):
                rows = segment.rows
                if rows["kind"].all():
                    at = int(np.searchsorted(rows["id_high"], high))
                else:
                    at = int(np.argmax((rows["id_high"] == high) & (rows["kind"] != ABSENT)))
                if at < len(rows) and rows["id_high"][at] == high:
                    return segment.first + at
        return None

    def _matches(self, segment: Segment, wanted: Selection, below: int) -> list[int]:
        rows = segment.rows[: max(0, below - segment.first)]
        mask = rows["kind"] == EXAMPLE
        for column, text in (("tenant", wanted.tenant), ("domain", wanted.domain)):
            if text:
                number = self.names.known(text)
                mask &= (rows[column] == number) if number is not None else False
        if wanted.request_id:
            mask &= rows["request"] == np.uint64(short_hash(wanted.request_id))
        return [segment.first + int(i) for i in np.flatnonzero(mask)[::-1]]

    def _with_key(self, tenant: str, key: str) -> Example | None:
        found = self._sequence_with_key(short_hash(tenant, key))
        example = None if found is None else self.read(found)
        if example is None or (example.new.tenant, example.new.idempotency_key) != (tenant, key):
            return None
        return example if example.created * 1000 >= self._oldest_ms() else None

    def _sequence_with_key(self, wanted: int) -> int | None:
        with self.mutex:
            found = self._recent_keys.get(wanted) if self.active else None
            if found is not None or len(self.segments) == 1:
                return found
            oldest = self._oldest_ms()
            for segment in reversed(self.segments[:-1]):
                if segment.last_high >> 16 < oldest:
                    return None
                found = segment.with_key(wanted)
                if found is not None:
                    return found
        return None

    def _oldest_ms(self) -> int:
        return int(self._clock() * 1000) - KEY_TTL_MS

    def _report_bad(self, sequence: int, error: BadLine) -> None:
        with self.mutex:
            if sequence not in self._unread:
                self._unread.add(sequence)
                _log.warning("bad_line_skipped", sequence=sequence, problem=str(error))


def _newest(rows: Rows, left: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Where the newest examples of each tenant stand, as many as it has `left`, which is counted down."""
    at = np.flatnonzero(rows["kind"] == EXAMPLE)[::-1]
    tenants = rows["tenant"][at]
    order = np.argsort(tenants, kind="stable")
    counts = np.bincount(tenants, minlength=len(left))
    rank = np.empty(len(at), np.int64)
    rank[order] = np.arange(len(at)) - np.repeat(np.cumsum(counts) - counts, counts)
    found: npt.NDArray[np.int64] = at[rank < left[tenants]]
    left -= np.minimum(left, counts)
    return found


def key_reused() -> MeshError:
    """The error for an idempotency key that another request had."""
    return MeshError("IDEMPOTENCY_KEY_REUSED", "this idempotency key was used for another request; take a new one")
