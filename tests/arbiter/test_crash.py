"""Real processes that are killed while they write (FAULTS 4)."""

import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from hivemind.servers.arbiter.chain import verify
from hivemind.servers.arbiter.folder import LedgerFolder
from tests.arbiter.examples import example
from tests.arbiter.rig import lines_on_disk
from tests.support.waiting import until

ROOT = Path(__file__).resolve().parents[2]


def start(folder: Path, name: str, said: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.arbiter.appender", str(folder), name]
    with said.open("wb") as out:
        return subprocess.Popen(command, stdout=out, cwd=ROOT)


def acknowledged(said: Path) -> dict[str, str]:
    """Key and id of all that a process was told is stored; it may have died within its last line."""
    whole = said.read_text().rpartition("\n")[0].splitlines()
    return dict(line.split() for line in whole if line != "ready")


def until_it_said(said: Path, count: int) -> None:
    until(lambda: len(acknowledged(said)) > count, within_s=30, what="writing")


def test_killed_again_and_again_every_acknowledged_example_is_in_the_file_once(tmp_path: Path) -> None:
    rng = random.Random(4)
    folder, told = tmp_path / "datasets", {}
    for round_number in range(6):
        said = [tmp_path / f"{round_number}-{n}" for n in range(2)]
        processes = [start(folder, s.name, s) for s in said]
        try:
            for s in said:
                until_it_said(s, 20)
            until_it_said(said[0], rng.randrange(20, 400))
        finally:
            for process in processes:
                process.kill()
                process.wait()
        for s in said:
            told.update(acknowledged(s))
    files = LedgerFolder(folder, rotate_bytes=200_000, clock=time.time)
    files.refresh()

    lines = lines_on_disk(folder)
    ids, keys = Counter(line["id"] for line in lines), Counter(line["idempotency_key"] for line in lines)
    by_key = {line["idempotency_key"]: line["id"] for line in lines}

    assert len(told) > 200
    assert set(ids.values()) == {1}
    assert set(keys.values()) == {1}
    assert {key: by_key.get(key) for key in told} == told
    assert [line["sequence"] for line in lines] == list(range(1, len(lines) + 1))
    assert len(list(folder.glob("training_metadata-*.jsonl"))) > 1
    assert verify(folder).problems == []


def test_a_retry_after_the_kill_gets_the_example_of_the_first_time(tmp_path: Path) -> None:
    folder, said = tmp_path / "datasets", tmp_path / "said"
    process = start(folder, "p", said)
    try:
        until_it_said(said, 20)
    finally:
        process.kill()
        process.wait()
    told = acknowledged(said)
    key = next(iter(told))
    files = LedgerFolder(folder, rotate_bytes=1 << 30, clock=time.time)

    again = files.commit([example(0, idempotency_key=key, draft=key * 20)])[0]

    assert getattr(again, "id", again) == told[key]
