"""Reads records from local files: JSON lines, JSON arrays and Parquet, plain or gzipped, in folders or alone.

Nothing in a file is fatal: a broken or huge line, a wrong type or a torn file is counted by its reason, and no more
than a line's limit is ever held in memory.
"""

import gzip
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final, cast

LINE_MAX: Final = 4 << 20
"""The longest line in bytes; what is longer is skipped unread."""
ARRAY_MAX: Final = 256 << 20
"""The largest file in bytes that may be one JSON array."""
_BATCH: Final = 256
_KINDS: Final = (".jsonl", ".ndjson", ".json", ".parquet", ".jsonl.gz", ".json.gz")

BROKEN_JSON: Final = "is not JSON"
TOO_LONG: Final = f"is longer than {LINE_MAX} bytes"
NO_OBJECT: Final = "is not an object"
UNREADABLE: Final = "file cannot be read"
UNKNOWN_KIND: Final = "file is of an unknown kind"


def files_of(paths: Sequence[str]) -> list[Path]:
    """The data files that paths name, folders taken apart, in one order on every machine."""
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            found += sorted(f for f in path.rglob("*") if f.is_file() and f.name.lower().endswith(_KINDS))
        else:
            found.append(path)
    return found


def read_records(path: Path, refused: Counter[str]) -> Iterator[Mapping[str, Any]]:
    """The records of a file; what is none is counted in `refused` by reason."""
    name = path.name.lower()
    if not name.endswith(_KINDS):
        refused[UNKNOWN_KIND] += 1
        return
    try:
        yield from _parquet(path) if name.endswith(".parquet") else _json(path, refused)
    except (OSError, EOFError, ValueError):
        refused[UNREADABLE] += 1


def _json(path: Path, refused: Counter[str]) -> Iterator[Mapping[str, Any]]:
    with _opened(path) as file:
        if _is_array(file):
            for item in _array(file):
                yield from _checked(item, refused)
            return
        for line in bounded_lines(file, refused):
            try:
                item = json.loads(line)
            except (ValueError, RecursionError):
                refused[BROKEN_JSON] += 1
                continue
            yield from _checked(item, refused)


def _opened(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")


def bounded_lines(file: IO[bytes], refused: Counter[str]) -> Iterator[bytes]:
    """The lines that are not blank, without more than LINE_MAX bytes in memory; longer ones are counted."""
    while line := file.readline(LINE_MAX + 1):
        if len(line) > LINE_MAX:
            refused[TOO_LONG] += 1
            while line and not line.endswith(b"\n"):
                line = file.readline(LINE_MAX)
        elif line.strip():
            yield line


def _is_array(file: IO[bytes]) -> bool:
    head = file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")
    file.seek(0)
    return head.startswith(b"[")


def _array(file: IO[bytes]) -> list[Any]:
    text = file.read(ARRAY_MAX + 1)
    found = json.loads(text) if len(text) <= ARRAY_MAX else None
    if not isinstance(found, list):
        raise ValueError("is no array, or too large a one")
    return found


def _parquet(path: Path) -> Iterator[Mapping[str, Any]]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=_BATCH):
            yield from batch.to_pylist()


def _checked(item: object, refused: Counter[str]) -> Iterator[Mapping[str, Any]]:
    if isinstance(item, dict):
        yield item
    else:
        refused[NO_OBJECT] += 1
