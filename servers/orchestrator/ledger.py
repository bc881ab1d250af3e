"""Reads the platinum ledger's files as they grow. See docs/ledger.md for their format.

A place in the ledger is the file (by its inode, which a rename keeps) and the offset behind the last line that was
read. Where that file is gone, because lines were forgotten and its segment was written again, the place is found anew
by the sequence.
"""

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, Final

import orjson

BATCH_BYTES: Final = 8 << 20
_SEGMENT: Final = re.compile(r"training_metadata-(\d{6,})\.jsonl")
_ACTIVE: Final = "training_metadata.jsonl"
_SEAL: Final = len(',"sha256":"') + 64 + len('"}')


@dataclass(frozen=True, slots=True)
class Place:
    """How far the ledger was read: the sequence of the last good line, the file and the offset behind it; and how many
    lines of the ledger as it is now could not be read so far."""

    sequence: int = 0
    inode: int = 0
    offset: int = 0
    bad_lines: int = 0


@dataclass(frozen=True, slots=True)
class Draft:
    """What a platinum example tells of the draft that it replaced. `when`: Unix seconds; `score` in [0,1]; `human`: a
    person gave the right answer, and nobody scored the draft."""

    id: str
    sequence: int
    when: float
    tenant: str
    domain: str
    model: str
    adapter: str
    score: float
    cost_micros: int
    human: bool


@dataclass(slots=True)
class Batch:
    """Lines that were read, the ids that they forget, and the place behind them. `more`: there may be further lines."""

    place: Place
    drafts: list[Draft] = field(default_factory=list)
    forgotten: set[str] = field(default_factory=set)
    more: bool = False


class LedgerReader:
    """Reads the files of a folder. Blocking: meant for a thread. OSError if the disk fails."""

    def __init__(self, folder: Path, *, batch_bytes: int = BATCH_BYTES) -> None:
        self._folder, self._batch_bytes = folder, batch_bytes

    def read(self, place: Place) -> Batch:
        """The next lines, about `batch_bytes` at the most; only whole ones."""
        files = self._files()
        at = next((i for i, (path, inode) in enumerate(files) if _continues(path, inode, place)), None)
        skip = place.sequence if at is None else 0
        batch = Batch(Place() if at is None else place)
        left = self._batch_bytes
        for i in range(at or 0, len(files)):
            path, inode = files[i]
            offset = place.offset if i == at else 0
            left = _read_file(path, inode, offset, batch, skip=skip, last=i == len(files) - 1, left=left)
            if left <= 0:
                batch.more = True
                break
        return batch

    def forgotten(self) -> set[str]:
        """The ids that any tombstone names."""
        return {name for batch in self._batches() for name in batch.forgotten}

    def domains_between(self, first: int, last: int) -> tuple[str, ...]:
        """The domains of the examples with a sequence from `first` to `last`."""
        drafts = (d for batch in self._batches() for d in batch.drafts if first <= d.sequence <= last)
        return tuple(sorted({d.domain for d in drafts if d.domain}))

    def _batches(self) -> Iterator[Batch]:
        batch = self.read(Place())
        yield batch
        while batch.more:
            batch = self.read(batch.place)
            yield batch

    def _files(self) -> list[tuple[Path, int]]:
        """The segments, oldest first, each with its inode."""
        try:
            names = [e.name for e in os.scandir(self._folder)]
        except FileNotFoundError:
            return []
        closed = sorted((int(m[1]), m[0]) for m in map(_SEGMENT.fullmatch, names) if m)
        wanted = [name for _, name in closed] + ([_ACTIVE] if _ACTIVE in names else [])
        return [(self._folder / name, (self._folder / name).stat().st_ino) for name in wanted]


def draft_of(line: bytes) -> tuple[int, Draft | None, frozenset[str]]:
    """What a line holds, without its newline: its sequence, its draft where it is an example, the ids that it forgets.

    ValueError for a line that the ledger did not write, or that was changed since.
    """
    try:
        fields = orjson.loads(line)
        role, sequence = fields["role"], fields["sequence"]
        if fields["schema"] != 1 or type(sequence) is not int:
            raise ValueError("schema")
        if role == "forgotten":
            return sequence, None, frozenset()
        if hashlib.sha256(line[:-_SEAL]).hexdigest() != fields["sha256"]:
            raise ValueError("sha256")
        if role == "tombstone":
            return sequence, None, frozenset(fields["forgets"].split())
        return sequence, _draft(fields), frozenset()
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(str(error)) from error


def _draft(fields: dict[str, Any]) -> Draft:
    p = fields["provenance"]
    return Draft(
        id=fields["id"], sequence=fields["sequence"], when=datetime.fromisoformat(fields["create_time"]).timestamp(),
        tenant=fields["tenant"], domain=fields["domain"], model=p["draft_model"], adapter=p["draft_adapter"],
        score=min(1.0, max(0.0, float(p["draft_score"]))), cost_micros=int(p["cost_micros"]),
        human=fields["refined_by"] == "HUMAN",
    )  # fmt: skip


def _continues(path: Path, inode: int, place: Place) -> bool:
    """Whether the place is in this file, behind a whole line."""
    if inode != place.inode or not place.offset:
        return False
    with path.open("rb") as file:
        file.seek(place.offset - 1)
        return file.read(1) == b"\n"


def _read_file(path: Path, inode: int, offset: int, batch: Batch, *, skip: int, last: bool, left: int) -> int:
    """Reads whole lines into the batch; how many bytes are left of those that may be read, 0 to stop here."""
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_ino != inode:
            return 0  # a rotation came between; the next look sees the files as they are then
        file.seek(offset)
        for line in _whole_lines(file):
            offset += len(line)
            left -= len(line) if _take(line[:-1], batch, skip) else 0
            batch.place = replace(batch.place, inode=inode, offset=offset)
            if left <= 0:
                return 0
    if not last:
        batch.place = replace(batch.place, inode=inode, offset=offset)
    return left


def _whole_lines(file: BinaryIO) -> Iterator[bytes]:
    """A line without its end is still being written, or was torn: the ledger's next writer cuts it."""
    for line in file:
        if not line.endswith(b"\n"):
            return
        yield line


def _take(line: bytes, batch: Batch, skip: int) -> bool:
    """Takes a line in; whether it is beyond what is skipped."""
    place = batch.place
    try:
        sequence, draft, forgotten = draft_of(line)
    except ValueError:
        batch.place = replace(place, bad_lines=place.bad_lines + 1)
        return place.sequence >= skip
    batch.place = replace(place, sequence=sequence)
    if sequence <= skip:
        return False
    batch.forgotten |= forgotten
    if draft is not None:
        batch.drafts.append(draft)
    return True
