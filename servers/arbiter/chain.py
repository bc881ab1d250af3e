"""Verifies a ledger: reads its files by itself, needs no running server, and says which line is wrong."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

import orjson

from hivemind.servers.arbiter.example import Example
from hivemind.servers.arbiter.folder import ACTIVE, CLOSED, PRIVATE, read_head
from hivemind.servers.arbiter.lines import GENESIS, BadLine, Stub, Tombstone, is_line_id, parse

_LOCK_WAIT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a line: the name of its file, its number there from 1, and its sequence (0: unknown)."""

    file: str
    line: int
    sequence: int
    problem: str


@dataclass(slots=True)
class Verdict:
    """What was found. `torn`: bytes of a last line without end, which nobody was told is stored."""

    files: int = 0
    lines: int = 0
    examples: int = 0
    forgotten: int = 0
    last_sequence: int = 0
    last_sha256: str = GENESIS
    torn: int = 0
    problems: list[Problem] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether every line is as it was written, and none is missing."""
        return not self.problems


@dataclass(frozen=True, slots=True)
class _At:
    file: str
    line: int


def segments_of(folder: Path) -> list[Path]:
    """The files of a ledger, oldest first."""
    closed = sorted(p for p in folder.glob("*.jsonl") if CLOSED.fullmatch(p.name))
    return [*closed, *([folder / ACTIVE] if (folder / ACTIVE).exists() else [])]


def verify(folder: Path) -> Verdict:
    """Checks every line of a ledger; OSError where a file cannot be read."""
    walk = _Walk()
    with ExitStack() as stack:
        for file, size, name in _snapshot(folder, stack):
            walk.files(file, size, name, is_last=name == ACTIVE)
    walk.settle_stubs()
    walk.check_end(folder)
    return walk.verdict


def examples_of(folder: Path) -> Iterator[tuple[bytes, Example]]:
    """Every example that can be learnt from, oldest first, with its line; bad lines are skipped."""
    forgotten: set[str] = set()
    for line in _lines(folder):
        with suppress(BadLine):
            found = parse(line)[0] if b'"role":"tombstone"' in line[:160] else None
            if isinstance(found, Tombstone):
                forgotten.update(found.ids)
    for line in _lines(folder):
        with suppress(BadLine):
            found, _ = parse(line)
            if isinstance(found, Example) and found.id not in forgotten:
                yield line, found


def _lines(folder: Path) -> Iterator[bytes]:
    for path in segments_of(folder):
        with open(path, "rb") as file:
            for line in file:
                yield line.rstrip(b"\n")


def _snapshot(folder: Path, stack: ExitStack) -> list[tuple[IO[bytes], int, str]]:
    """The files, open, with their sizes and names at one moment: under the writers' lock, where it is to be had."""
    with ExitStack() as lock:
        with suppress(OSError):
            _share(lock.enter_context(open(folder / PRIVATE / "lock", "rb")))
        files = [stack.enter_context(open(p, "rb")) for p in segments_of(folder)]
        return [(f, os.fstat(f.fileno()).st_size, Path(f.name).name) for f in files]


def _share(lock: IO[bytes]) -> None:
    end = time.monotonic() + _LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > end:
                return
            time.sleep(0.001)


class _Walk:
    """Goes through the lines in order; after a wrong one it goes on from what it found, so that one fault is one
    problem."""

    def __init__(self) -> None:
        self.verdict = Verdict()
        self._previous_id = ""
        self._lost = 0  # lines in a row that no longer say where they stood
        self._stubs: dict[str, tuple[_At, Stub]] = {}
        self._hashes: dict[str, str] = {}

    def files(self, file: IO[bytes], size: int, name: str, *, is_last: bool) -> None:
        """Goes through a file up to a size."""
        self.verdict.files += 1
        read = 0
        for number, line in enumerate(file, 1):
            read += len(line)
            if read > size:
                return
            if line.endswith(b"\n"):
                self._line(_At(name, number), line[:-1])
            elif is_last:
                self.verdict.torn = len(line)
            else:
                self._wrong(_At(name, number), 0, "has no end")

    def _line(self, at: _At, line: bytes) -> None:
        verdict = self.verdict
        verdict.lines += 1
        try:
            found, before = parse(line)
        except BadLine as error:
            self._unreadable(at, line, str(error))
            return
        lost, self._lost = self._lost, 0
        if found.sequence != verdict.last_sequence + 1 + lost:
            self._wrong(at, found.sequence, _gap(verdict.last_sequence + 1 + lost, found.sequence))
        elif lost == 0 and before != verdict.last_sha256:
            self._wrong(at, found.sequence, "does not carry on the line before: one of the two was exchanged")
        elif found.id <= self._previous_id:
            self._wrong(at, found.sequence, "has an id that is not above the one before")
        self._go_on(found.sequence, found.sha256, found.id)
        self._count(at, found)

    def _unreadable(self, at: _At, line: bytes, problem: str) -> None:
        """A changed line often still says where it stood; the walk goes on from there."""
        sequence = 0
        self._lost += 1
        with suppress(orjson.JSONDecodeError, AttributeError, TypeError):
            fields = orjson.loads(line)
            sequence, sha256, name = int(fields["sequence"]), str(fields["sha256"]), str(fields["id"])
            if sequence == self.verdict.last_sequence + 1 and is_line_id(name):
                self._go_on(sequence, sha256, name)
                self._lost = 0
        self._wrong(at, sequence, problem)

    def _count(self, at: _At, found: Example | Tombstone | Stub) -> None:
        if isinstance(found, Example):
            self.verdict.examples += 1
        elif isinstance(found, Stub):
            self._stubs[found.id] = at, found
        else:
            for name, sha256 in zip(found.ids, found.hashes, strict=False):
                self._hashes[name] = sha256

    def settle_stubs(self) -> None:
        """Each stub needs a tombstone that names its id and hash."""
        for at, stub in self._stubs.values():
            if self._hashes.get(stub.id) == stub.sha256:
                self.verdict.forgotten += 1
            else:
                self._wrong(at, stub.sequence, "is a stub that no tombstone founds")

    def check_end(self, folder: Path) -> None:
        """Compares with the newest line as it was noted apart: what is missing at the end shows only there."""
        head, verdict = read_head(folder / PRIVATE), self.verdict
        if head is None or head.sequence < verdict.last_sequence:
            return
        if head.sequence > verdict.last_sequence:
            problem = f"is missing at the end: lines {verdict.last_sequence + 1} to {head.sequence} were stored"
            self._wrong(_At(ACTIVE, 0), head.sequence, problem)
        elif head.sha256 != verdict.last_sha256:
            self._wrong(_At(ACTIVE, 0), head.sequence, "the last line is not the one that was stored")

    def _go_on(self, sequence: int, sha256: str, name: str) -> None:
        self.verdict.last_sequence, self.verdict.last_sha256, self._previous_id = sequence, sha256, name

    def _wrong(self, at: _At, sequence: int, problem: str) -> None:
        self.verdict.problems.append(Problem(at.file, at.line, sequence, problem))


def _gap(expected: int, found: int) -> str:
    if found > expected:
        missing = f"line {expected} is" if found == expected + 1 else f"lines {expected} to {found - 1} are"
        return f"comes too early: {missing} missing before it"
    return f"is out of order or stands twice: {expected} was expected"


def folder_is_there(folder: Path) -> bool:
    """Whether a ledger stands in a folder."""
    return os.path.isdir(folder) and bool(segments_of(folder))
