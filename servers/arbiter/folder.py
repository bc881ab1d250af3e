"""The ledger's files: appended, caught up with, rotated and rewritten under the folder's lock. Blocking; no asyncio.

Several processes may share the folder. Whoever holds the lock first takes in what others appended, so that sequences,
ids and the chain go on from the last line, whoever wrote it. Closing the active segment is how others learn that files
were moved or rewritten: its name then leads to another file.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import orjson
import structlog

from hivemind.servers.arbiter.disk import Disk, FolderLock, Handle, RealDisk, is_at, read_exactly, refused, write_all
from hivemind.servers.arbiter.example import Example, NewExample
from hivemind.servers.arbiter.lines import GENESIS, TOMBSTONE_MAX, BadLine, id_high, parse, read_fields, stub_line
from hivemind.servers.arbiter.segment import ABSENT, DOOMED, Segment, markers
from hivemind.servers.arbiter.shelf import Selection, Shelf
from hivemind.servers.arbiter.writing import Cursor, Writing
from hivemind.servers.common.errors import MeshError

_log = structlog.get_logger()

ACTIVE: Final = "training_metadata.jsonl"
CLOSED: Final = re.compile(r"training_metadata-(\d{6})\.jsonl")
PRIVATE: Final = ".platinum"
"""The folder beside the segments that holds lock, indices and head: all of it can be made again."""
HEAD: Final = "head"
"""The file in it that names the newest line."""


@dataclass(frozen=True, slots=True)
class _Debt:
    """A tail that was refused and could not be cut: where it begins, and the size of the file when it was left."""

    begins: int
    left_at: int


class LedgerFolder:
    """The writer of a folder; one thread calls it. What it takes in stands in `shelf`, which any thread may read.

    `clock` answers Unix seconds; the active segment is indexed again each time that it has grown by `index_bytes`;
    `on_torn` is told how many bytes of a line that a dead process left were cut.
    """

    def __init__(
        self,
        folder: Path,
        *,
        rotate_bytes: int,
        clock: Callable[[], float],
        disk: Disk | None = None,
        lock_wait_s: float = 10.0,
        index_bytes: int = 32 << 20,
        on_torn: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._folder, self._private = folder, folder / PRIVATE
        self._rotate_bytes, self._clock, self._disk, self._on_torn = rotate_bytes, clock, disk or RealDisk(), on_torn
        self._lock = FolderLock(self._private / "lock", wait_s=lock_wait_s)
        self._head_file = self._private / HEAD
        self._head: Handle | None = None
        self._index_bytes = index_bytes
        self._lost_to = Cursor(0, GENESIS, 0)
        self._debt: _Debt | None = None
        self.shelf = Shelf(clock)

    def changed_outside(self) -> bool:
        """Whether another process has changed the files, or they were not read yet; it looks without the lock."""
        if not self.shelf.segments or self._debt is not None:
            return True
        active = self.shelf.active
        try:
            stat = (self._folder / ACTIVE).stat()
        except OSError:
            return True
        return (stat.st_ino, stat.st_size) != (active.handle.inode, active.size)

    def refresh(self) -> None:
        """Takes in what others wrote; the first time reads all. MeshError if the disk refuses."""
        with self._held():
            pass

    def commit(self, batch: Sequence[NewExample]) -> list[Example | Exception]:
        """Stores a batch with one sync; for each its example or what is wrong with it. MeshError: nothing is stored."""
        with self._held():
            writing = self._writing()
            answers = [self._place(new, writing) for new in batch]
            self._write(writing)
            if self.shelf.active.size >= self._rotate_bytes:
                self._rotate_or_wait()
        return answers

    def forget(self, wanted: Selection | str, *, reason: str, tenant: str, rotate: bool) -> list[str]:
        """Forgets the example with an id, or all of a selection; answers their ids. `tenant`, if not empty: only of it.

        With `rotate` the texts of all that is forgotten have left the disk when this returns.
        """
        with self._held():
            found = list(self._to_forget(wanted, tenant))
            writing = self._writing()
            for start in range(0, len(found), TOMBSTONE_MAX):
                writing.add_tombstone(found[start : start + TOMBSTONE_MAX], reason)
            self._write(writing)
            with self.shelf.mutex:
                for name, _ in found:
                    self.shelf.doom(name)
            if rotate and any(True for _ in self.shelf.doomed()):
                self._rotate()
        return [name for name, _ in found]

    @contextmanager
    def _held(self) -> Iterator[None]:
        """Holds the lock, with all taken in that others wrote."""
        try:
            with self._lock.held():
                self._catch_up()
                yield
        except OSError as error:
            raise refused(error) from error

    # Taking in.

    def _catch_up(self) -> None:
        if not self.shelf.segments:
            return self._reload()
        self._pay_debt()
        active, stat = self.shelf.active, _stat(self._folder / ACTIVE)
        if stat is None or stat.st_ino != active.handle.inode or stat.st_size < active.size:
            return self._reload()
        if stat.st_size > active.size:
            self._disk.sync(active.handle.fd)  # its writer may have died before it did so
            with self.shelf.mutex:
                before = active.count
                self.shelf.take_in(self._scan(active, stat.st_size), start=before)
        return None

    def _pay_debt(self) -> None:
        debt, active = self._debt, self.shelf.active
        if debt is None:
            return
        stat = _stat(self._folder / ACTIVE)
        if stat is not None and (stat.st_ino, stat.st_size) == (active.handle.inode, debt.left_at):
            self._disk.truncate(active.handle.fd, debt.begins)
        self._debt = None

    def _reload(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        for aside in self._private.glob("*.aside"):
            aside.unlink(missing_ok=True)
        known = {s.handle.inode: s for s in self.shelf.segments}
        segments: list[Segment] = []
        floor = Cursor(0, GENESIS, 0)
        for path in sorted(p for p in self._folder.iterdir() if CLOSED.fullmatch(p.name)):
            segment = self._closed(path, known, floor)
            segments.append(segment)
            if segment.count:
                floor = Cursor(segment.last, segment.head, segment.last_high)
        active = Segment(
            self._folder / ACTIVE, self._open_active(), floor=floor.sequence, floor_high=floor.high, head=floor.sha256
        )
        self._disk.sync(active.handle.fd)
        active.load_beginning(self._index_of(active.path), self.shelf.names)
        self._scan(active, os.fstat(active.handle.fd).st_size)
        self._index_if_grown(active)
        tombstones = [segment.read(sequence) for segment in (*segments, active) for sequence in markers(segment)]
        with self.shelf.mutex:
            self.shelf.replace((*segments, active))
            self.shelf.take_in(tombstones, start=0)
        self._heed_head()

    def _closed(self, path: Path, known: dict[int, Segment], floor: Cursor) -> Segment:
        handle = Handle(path, os.O_RDWR)
        size = os.fstat(handle.fd).st_size
        same = known.get(handle.inode)
        if same is not None and (same.size, same.floor) == (size, floor.sequence):
            if same.path != path:
                same.path = path
                self._save_index(same)
            same.freeze()
            return same
        segment = Segment(path, handle, floor=floor.sequence, floor_high=floor.high, head=floor.sha256)
        if not segment.load_index(self._index_of(path), self.shelf.names):
            rest = [line for sequence, line in segment.scan(self.shelf.names, until=size) if sequence == 0]
            segment.bad += len(rest)
            segment.size = size
            self._save_index(segment)
        segment.freeze()
        return segment

    def _open_active(self) -> Handle:
        path = self._folder / ACTIVE
        if _stat(path) is None:
            aside = self._private / f"{ACTIVE}.aside"
            Handle(aside, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            self._disk.replace(aside, path)
        return Handle(path, os.O_RDWR)

    def _scan(self, active: Segment, size: int) -> list[bytes]:
        """Notes the lines up to a size; answers the tombstones among them."""
        tombstones = []
        for sequence, line in active.scan(self.shelf.names, until=size):
            if sequence:
                tombstones.append(line)
            else:
                self._settle_tail(active, line)
        return tombstones

    def _settle_tail(self, active: Segment, rest: bytes) -> None:
        """A last line without newline: whole but for that (an editor took it) it is kept, else cut and reported."""
        whole = False
        with suppress(BadLine):
            active.note(rest, read_fields(rest), self.shelf.names)
            whole = True
        if whole:
            write_all(self._disk, active.handle.fd, b"\n", active.size + len(rest))
            active.size += len(rest) + 1
        else:
            self._disk.truncate(active.handle.fd, active.size)
            self._on_torn(len(rest))
            _log.warning("torn_line_cut", file=ACTIVE, bytes=len(rest), last_sequence=active.last)
        self._disk.sync(active.handle.fd)

    def _heed_head(self) -> None:
        """Sequences that were committed once are never given again, whatever became of their lines."""
        head, last = read_head(self._private), self.shelf.last_sequence
        if head is not None and head.sequence > last:
            _log.error("ledger_lost_lines", last_sequence=last, committed_sequence=head.sequence)
            self._lost_to = head

    # Writing.

    def _writing(self) -> Writing:
        active = self.shelf.active
        last = Cursor(active.last, active.head, active.last_high)
        return Writing(max(last, self._lost_to, key=lambda c: c.sequence), int(self._clock() * 1000))

    def _place(self, new: NewExample, writing: Writing) -> Example | Exception:
        try:
            before = self.shelf.repeated(new.tenant, new.idempotency_key, new.fingerprint) or writing.repeated(new)
            return before or writing.add_example(new)
        except (MeshError, ValueError, TypeError) as error:
            return error

    def _write(self, writing: Writing) -> None:
        if not writing.lines:
            return
        active = self.shelf.active
        try:
            write_all(self._disk, active.handle.fd, b"".join(writing.lines), active.size)
            self._disk.sync(active.handle.fd)
        except OSError as error:
            self._undo(active)
            raise refused(error) from error
        with self.shelf.mutex:
            self._take(active, writing)
        self._write_head(writing)
        self._index_if_grown(active)

    def _take(self, active: Segment, writing: Writing) -> None:
        names = self.shelf.names
        for line, high, example in zip(writing.lines, writing.highs, writing.examples, strict=True):
            if example is not None:
                key = active.note_new(example.sequence, high, example.new, len(line) - 1, names)
                self.shelf.remember_key(key, example.sequence)
            else:
                active.note(line[:-1], read_fields(line[:-1]), names)
            active.size += len(line)
        active.head = writing.cursor.sha256

    def _undo(self, active: Segment) -> None:
        """Cuts off what was refused, through a new descriptor: after a failed sync the old one may hide the failure."""
        try:
            active.handle = Handle(active.path, os.O_RDWR)
            self._disk.truncate(active.handle.fd, active.size)
            self._disk.sync(active.handle.fd)
        except OSError as error:
            left_at = os.fstat(active.handle.fd).st_size
            if left_at > active.size:
                self._debt = _Debt(active.size, left_at)
                _log.error("refused_tail_stays", error=str(error), bytes=left_at - active.size)

    def _write_head(self, writing: Writing) -> None:
        """Notes the newest line apart, so that lines missing at the end are noticed. Not synced: it may be older."""
        cursor = writing.cursor
        text = orjson.dumps({"sequence": cursor.sequence, "id": writing.last_id, "sha256": cursor.sha256})
        with suppress(OSError):
            if self._head is None or not is_at(self._head, self._head_file):
                self._head = Handle(self._head_file, os.O_WRONLY | os.O_CREAT)
            os.pwrite(self._head.fd, text.ljust(_HEAD_BYTES) + b"\n", 0)

    # Rotating.

    def _rotate_or_wait(self) -> None:
        try:
            self._rotate()
        except MeshError as error:
            _log.error("rotation_failed", error=str(error))  # the next commit tries again

    def _rotate(self) -> None:
        """Closes the active segment, takes forgotten texts off the disk, and begins a new one."""
        active = self.shelf.active
        try:
            if active.size:
                self._close(active)
            for segment in list(self.shelf.doomed()):
                self._rewrite(segment)
            if not active.size:
                active.path.unlink()
        except OSError as error:
            raise refused(error) from error
        finally:
            self._reload()

    def _close(self, active: Segment) -> None:
        numbers = [int(m[1]) for p in self._folder.iterdir() if (m := CLOSED.fullmatch(p.name))]
        path = self._folder / f"training_metadata-{max(numbers, default=0) + 1:06d}.jsonl"
        self._disk.replace(active.path, path)
        self._index_of(active.path).unlink(missing_ok=True)
        active.path = path
        self._save_index(active)

    def _rewrite(self, segment: Segment) -> None:
        """Writes a segment again without the texts of forgotten examples: aside, synced, renamed."""
        aside = self._private / f"{segment.path.name}.aside"
        handle = Handle(aside, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        offset = 0
        for piece in _purged(segment):
            write_all(self._disk, handle.fd, piece, offset)
            offset += len(piece)
        self._disk.sync(handle.fd)
        self._index_of(segment.path).unlink(missing_ok=True)
        self._disk.replace(aside, segment.path)
        _log.info("forgotten_texts_removed", file=segment.path.name)

    def _index_if_grown(self, active: Segment) -> None:
        """So that the next start need not read all of the active segment."""
        if active.size - active.indexed >= self._index_bytes:
            self._save_index(active)

    def _save_index(self, segment: Segment) -> None:
        try:
            segment.save_index(self._index_of(segment.path), self.shelf.names)
        except OSError as error:
            _log.warning("index_not_written", file=segment.path.name, error=str(error))

    def _index_of(self, path: Path) -> Path:
        return self._private / f"{path.stem}.index"

    def _to_forget(self, wanted: Selection | str, tenant: str) -> Iterator[tuple[str, str]]:
        if isinstance(wanted, str):
            found = iter([self.shelf.find(wanted)])
        else:
            end = self.shelf.last_sequence + 1
            found = map(self.shelf.read, reversed(self.shelf.select(wanted, below=end, count=end)))
        request_id = wanted.request_id if isinstance(wanted, Selection) else ""
        for example in found:
            if (
                example is not None
                and tenant in ("", example.new.tenant)
                and request_id in ("", example.new.request_id)
            ):
                yield example.id, example.sha256


_HEAD_BYTES: Final = 255


def read_head(private: Path) -> Cursor | None:
    """The newest line as it was noted apart; None if it was not, or cannot be read."""
    try:
        head = orjson.loads((private / HEAD).read_bytes())
        return Cursor(int(head["sequence"]), str(head["sha256"]), id_high(head["id"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _purged(segment: Segment) -> Iterator[bytes]:
    """The bytes of a segment with stubs where texts were; bad lines between stay as they are."""
    end = 0
    for row in segment.rows[segment.rows["kind"] != ABSENT]:
        start, length = int(row["offset"]), int(row["length"]) + 1
        if start > end:
            yield read_exactly(segment.handle.fd, start - end, end)
        line = read_exactly(segment.handle.fd, length, start)
        end = start + length
        yield _stub_of(line) if row["kind"] == DOOMED else line
    if segment.size > end:
        yield read_exactly(segment.handle.fd, segment.size - end, end)


def _stub_of(line: bytes) -> bytes:
    """The stub of a forgotten line; nothing where that cannot be read: its text has to go all the same."""
    try:
        found, before = parse(line[:-1])
    except BadLine:
        return b""
    return stub_line(found, before) if isinstance(found, Example) else line
