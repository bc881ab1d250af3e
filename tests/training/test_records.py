import gzip
import json
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivemind.training.records import (
    BROKEN_JSON,
    LINE_MAX,
    NO_OBJECT,
    TOO_LONG,
    UNKNOWN_KIND,
    UNREADABLE,
    files_of,
    read_records,
)

GOOD = {"input": "q", "output": "a"}


def read(path: Path) -> tuple[list[object], Counter[str]]:
    refused: Counter[str] = Counter()
    return list(read_records(path, refused)), refused


def test_broken_lines_and_lines_that_are_no_objects_are_counted_and_the_rest_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'{"input": \n' + json.dumps(GOOD).encode() + b"\n[1]\n\n\xff\xfe\n7\n" + json.dumps(GOOD).encode()
    )
    assert read(path) == ([GOOD, GOOD], Counter({BROKEN_JSON: 2, NO_OBJECT: 2}))


def test_a_line_of_a_gigabyte_is_skipped_without_holding_it(tmp_path: Path) -> None:
    path = tmp_path / "huge.jsonl"
    with path.open("wb") as file:
        file.write(json.dumps(GOOD).encode() + b"\n{")
        file.truncate(1 << 30)  # a hole: a gigabyte of zeros without a line's end
        file.seek(0, 2)
        file.write(b"\n" + json.dumps(GOOD).encode() + b"\n")
    tracemalloc.start()
    try:
        found = read(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found == ([GOOD, GOOD], Counter({TOO_LONG: 1}))
    assert peak < 4 * LINE_MAX


def test_json_arrays_gzip_and_parquet_are_read(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    (tmp_path / "a.json").write_text("\n " + json.dumps([GOOD, 3]))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(json.dumps(GOOD).encode()))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([GOOD, GOOD]), tmp_path / "c.parquet")
    (tmp_path / "notes.txt").write_text("no data")
    found = [len(read(path)[0]) for path in files_of([str(tmp_path)])]
    assert found == [1, 1, 2]


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl.gz", "a.json"])
def test_a_torn_file_is_counted(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b'[{"input"' if name == "a.json" else gzip.compress(b"x" * 1000)[:20])
    assert read(path) == ([], Counter({UNREADABLE: 1}))


def test_a_file_of_another_kind_is_not_guessed_at(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("input,output\nq,a\n")
    assert read(path) == ([], Counter({UNKNOWN_KIND: 1}))


@given(st.binary(max_size=400))
def test_no_bytes_are_fatal(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("any") / "a.jsonl"
    path.write_bytes(data)
    records, _ = read(path)
    assert all(isinstance(r, dict) for r in records)
