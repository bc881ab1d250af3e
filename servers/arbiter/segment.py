"""One file of the ledger and where its lines lie: about 50 bytes of memory a line, and an index file beside it."""

import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from hivemind.servers.arbiter.disk import Handle, read_exactly
from hivemind.servers.arbiter.example import REFINERS, ROLE, NewExample
from hivemind.servers.arbiter.lines import FORGOTTEN, BadLine, id_high, read_fields

ABSENT, EXAMPLE, MARKER, DOOMED, GONE = range(5)
"""What a line is: not there, an example, a tombstone, an example that is forgotten and still on the disk, a stub."""
ROW: Final = np.dtype(
    [("offset", "<u8"), ("id_high", "<u8"), ("key", "<u8"), ("request", "<u8"), ("cost", "<i8"), ("length", "<u4"),
     ("tenant", "<u4"), ("domain", "<u4"), ("kind", "u1"), ("refined_by", "u1")]
)  # fmt: skip
Rows = npt.NDArray[np.void]

_VERSION: Final = 1
_CHUNK: Final = 4 << 20
_GAP_MAX: Final = 1_000_000
_FIRST_ROWS: Final = 1024
_SHORT_HASH: Final = hashlib.blake2b(digest_size=8)  # a copy is made in half the time that a new one takes


class Names:
    """Small numbers for the tenants and domains that occur."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {"": 0}
        self.texts: list[str] = [""]

    def number(self, text: str) -> int:
        """The number of a text, a new one for a new text."""
        found = self._numbers.get(text)
        if found is None:
            found = self._numbers[text] = len(self.texts)
            self.texts.append(text)
        return found

    def known(self, text: str) -> int | None:
        """The number of a text, None if it never occurred."""
        return self._numbers.get(text)


@lru_cache(maxsize=1024)  # a key is looked up before its line is noted
def short_hash(*texts: str) -> int:
    """64 bits that stand for some texts; 0 for none of them. Whoever finds by it compares the texts themselves."""
    if not texts[-1]:
        return 0
    found = _SHORT_HASH.copy()
    found.update("\0".join(texts).encode())
    return int.from_bytes(found.digest(), "little") or 1


class Segment:
    """A file of the ledger. `rows[k]` is the line of sequence `first + k`, `size` the bytes that are known.

    `floor` and `floor_high` are the last sequence before it and the upper half of its id: all in it lies above. `head`
    is the hash of its last line, at first of the one before it; `indexed` the size that the index file covers.
    """

    def __init__(self, path: Path, handle: Handle, *, floor: int, floor_high: int, head: str) -> None:
        self.path, self.handle = path, handle
        self.floor, self._floor_high = floor, floor_high
        self.first, self.count, self.size, self.bad, self.indexed = floor + 1, 0, 0, 0, 0
        self.head = head
        self._rows: Rows = np.zeros(_FIRST_ROWS, ROW)
        self._keys: tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]] | None = None

    @property
    def rows(self) -> Rows:
        """The rows there are."""
        return self._rows[: self.count]

    @property
    def last(self) -> int:
        """The last sequence; `first - 1` if there is none."""
        return self.first + self.count - 1

    @property
    def last_high(self) -> int:
        """The upper half of the last id."""
        return int(self._rows[self.count - 1]["id_high"]) if self.count else self._floor_high

    def add(self, sequence: int, row: tuple[int, ...]) -> None:
        """Notes the line of a sequence above all before it; those between are absent."""
        if self.count == 0:
            self.first = sequence
        index = sequence - self.first
        while index >= len(self._rows):
            self._rows = np.concatenate([self._rows, np.zeros(max(_FIRST_ROWS, len(self._rows)), ROW)])
        self._rows[index] = row
        self.count = index + 1

    def row(self, sequence: int) -> np.void:
        """What is noted of a line."""
        found: np.void = self._rows[sequence - self.first]
        return found

    def read(self, sequence: int) -> bytes:
        """The bytes of a line, without its newline; empty where it is absent."""
        row = self.row(sequence)
        length = int(row["length"])
        return read_exactly(self.handle.fd, length, int(row["offset"])) if length else b""

    def freeze(self) -> None:
        """Nothing is added any more: drops spare room and sorts the idempotency keys."""
        if self._keys is not None:
            return
        self._rows = self.rows.copy()
        keyed = np.flatnonzero(self._rows["key"])
        keys = self._rows["key"][keyed]
        order = np.argsort(keys, kind="stable")
        self._keys = keys[order], keyed[order].astype(np.int64)

    def with_key(self, key: int) -> int | None:
        """The newest sequence under an idempotency key's hash, of a frozen segment."""
        assert self._keys is not None
        end = int(np.searchsorted(self._keys[0], np.uint64(key), side="right"))
        if end == 0 or int(self._keys[0][end - 1]) != key:
            return None
        return self.first + int(self._keys[1][end - 1])

    def scan(self, names: Names, *, until: int) -> Iterator[tuple[int, bytes]]:
        """Reads on from `size` to `until` and notes each line; bad ones are counted and skipped.

        Yields (sequence, line) of each tombstone, and at the end (0, rest) where the last line has no newline.
        """
        rest = b""
        offset = self.size
        while offset < until:
            chunk = read_exactly(self.handle.fd, min(_CHUNK, until - offset), offset)
            if not chunk:
                break
            offset += len(chunk)
            lines = (rest + chunk).split(b"\n")
            rest = lines.pop()
            for line in lines:
                marker = self._note(line, names)
                self.size += len(line) + 1
                if marker:
                    yield marker, line
        if rest:
            yield 0, rest

    def note(self, line: bytes, fields: dict[str, Any], names: Names) -> None:
        """Notes a line that stands at `size`, without moving that; BadLine where its place is not above all before."""
        try:
            sequence, high = fields["sequence"], id_high(fields["id"])
            if not self.last < sequence or (self.count and sequence > self.last + _GAP_MAX) or high <= self.last_high:
                raise BadLine("is out of order")
            kind = {ROLE: EXAMPLE, FORGOTTEN: GONE}.get(fields["role"], MARKER)
            refined_by = REFINERS.index(fields["refined_by"]) if kind == EXAMPLE else 0
            row = (
                self.size, high, short_hash(fields["tenant"], fields["idempotency_key"]),
                short_hash(fields["request_id"]), fields["provenance"]["cost_micros"], len(line),
                names.number(fields["tenant"]), names.number(fields["domain"]), kind, refined_by,
            )  # fmt: skip
            self.add(sequence, row)
            self.head = fields["sha256"]
        except (KeyError, TypeError, ValueError, OverflowError, IndexError) as error:
            raise BadLine("is not a line of this schema") from error

    def note_new(self, sequence: int, high: int, new: NewExample, length: int, names: Names) -> int:
        """Notes an example that was just written at `size`; answers the hash of its idempotency key."""
        key, request = short_hash(new.tenant, new.idempotency_key), short_hash(new.request_id)
        row = (
            self.size, high, key, request, new.provenance.cost_micros, length,
            names.number(new.tenant), names.number(new.domain), EXAMPLE, REFINERS.index(new.refined_by),
        )  # fmt: skip
        self.add(sequence, row)
        return key

    def _note(self, line: bytes, names: Names) -> int:
        """Notes a line that was read; answers its sequence if it is a tombstone, else 0."""
        try:
            fields = read_fields(line)
            self.note(line, fields, names)
        except BadLine:
            self.bad += 1
            return 0
        return self.last if self._rows[self.count - 1]["kind"] == MARKER else 0

    def save_index(self, file: Path, names: Names) -> None:
        """Writes the index file, by rename; OSError if the disk refuses."""
        used = np.unique(np.concatenate([self.rows["tenant"], self.rows["domain"]]))
        table = {int(n): names.texts[int(n)] for n in used}
        data = self.rows.tobytes()
        stat = os.fstat(self.handle.fd)
        header = {
            "version": _VERSION, "size": self.size, "mtime_ns": stat.st_mtime_ns, "first": self.first,
            "count": self.count, "bad": self.bad, "head": self.head, "names": table, "crc32": zlib.crc32(data),
        }  # fmt: skip
        aside = file.with_suffix(".aside")
        aside.write_bytes(json.dumps(header).encode() + b"\n" + data)
        aside.replace(file)
        self.indexed = self.size

    def load_index(self, file: Path, names: Names) -> bool:
        """Takes the rows from the index file; False where that is absent, or is not of this very file."""
        found = self._index_in(file)
        stat = os.fstat(self.handle.fd)
        if found is None or (found[0]["size"], found[0]["mtime_ns"]) != (stat.st_size, stat.st_mtime_ns):
            return False
        self._take_rows(*found, names)
        return True

    def load_beginning(self, file: Path, names: Names) -> None:
        """Takes the rows of a file that has grown since, if its last line of then still stands where it stood."""
        found = self._index_in(file)
        if found is None or found[0]["size"] > os.fstat(self.handle.fd).st_size or not found[0]["count"]:
            return
        last = np.frombuffer(found[1], ROW)[-1]
        line = read_exactly(self.handle.fd, int(last["length"]), int(last["offset"]))
        if line.endswith(f',"sha256":"{found[0]["head"]}"}}'.encode()):
            self._take_rows(*found, names)

    def _index_in(self, file: Path) -> tuple[dict[str, Any], bytes] | None:
        with suppress(OSError, ValueError, KeyError, TypeError):
            head, _, data = file.read_bytes().partition(b"\n")
            header: dict[str, Any] = json.loads(head)
            whole = header["version"] == _VERSION and len(data) == header["count"] * ROW.itemsize
            if whole and zlib.crc32(data) == header["crc32"] and header["first"] > self.floor:
                return header, data
        return None

    def _take_rows(self, header: dict[str, Any], data: bytes, names: Names) -> None:
        rows = np.frombuffer(data, ROW).copy()
        numbers = np.zeros(1 + max(map(int, header["names"]), default=0), np.uint32)
        for number, text in header["names"].items():
            numbers[int(number)] = names.number(text)
        rows["tenant"], rows["domain"] = numbers[rows["tenant"]], numbers[rows["domain"]]
        self._rows, self.first, self.count = rows, header["first"], header["count"]
        self.size, self.bad, self.head = header["size"], header["bad"], header["head"]
        self.indexed = self.size


def markers(segment: Segment) -> Sequence[int]:
    """The sequences of the tombstones in a segment."""
    return [segment.first + int(i) for i in np.flatnonzero(segment.rows["kind"] == MARKER)]
