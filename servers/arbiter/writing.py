"""Lines on their way to the disk: each gets its place after the one before."""

import os
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from hivemind.servers.arbiter.example import Example, NewExample
from hivemind.servers.arbiter.lines import Place, example_line, next_id, placed, tombstone_line
from hivemind.servers.arbiter.shelf import key_reused


class Cursor(NamedTuple):
    """The newest line: its sequence, its hash, and the upper half of its id."""

    sequence: int
    sha256: str
    high: int


class Writing:
    """A batch. `lines`, `highs` (the upper halves of their ids) and `examples` run in step; a tombstone stands as None
    among the examples."""

    def __init__(self, cursor: Cursor, now_ms: int) -> None:
        self.cursor, self._now_ms = cursor, now_ms
        self.lines: list[bytes] = []
        self.highs: list[int] = []
        self.examples: list[Example | None] = []
        self.last_id = ""
        self._random = _random_62()
        self._keys: dict[tuple[str, str], Example] = {}

    def repeated(self, new: NewExample) -> Example | None:
        """The example of this batch under the same key; IDEMPOTENCY_KEY_REUSED as in ports.PlatinumLedger."""
        found = self._keys.get((new.tenant, new.idempotency_key)) if new.idempotency_key else None
        if found is not None and found.new.fingerprint != new.fingerprint:
            raise key_reused()
        return found

    def add_example(self, new: NewExample) -> Example:
        """Adds an example; ValueError or TypeError where it cannot be written."""
        place = self._next()
        line, sha256 = example_line(place, new)
        example = placed(place, sha256, new)
        self._took(place, line, sha256, example)
        if new.idempotency_key:
            self._keys[new.tenant, new.idempotency_key] = example
        return example

    def add_tombstone(self, forgotten: Sequence[tuple[str, str]], reason: str) -> None:
        """Adds a tombstone for examples, given by id and hash."""
        place = self._next()
        line, sha256 = tombstone_line(place, forgotten, reason)
        self._took(place, line, sha256, None)

    def _next(self) -> Place:
        name, high = next_id(self._now_ms, self.cursor.high, next(self._random))
        return Place(name, high, self.cursor.sequence + 1, self.cursor.sha256)

    def _took(self, place: Place, line: bytes, sha256: str, example: Example | None) -> None:
        self.cursor = Cursor(place.sequence, sha256, place.high)
        self.last_id = place.id
        self.highs.append(place.high)
        self.lines.append(line)
        self.examples.append(example)


def _random_62() -> Iterator[int]:
    """Numbers of 62 bits from the system, which is asked once for many."""
    while True:
        for (number,) in struct.iter_unpack("<Q", os.urandom(512)):
            yield number >> 2
