"""The ledger's files: what stands in them is read here with json, not by the code under test."""

import asyncio
import errno
import hashlib
import json
import random
import resource
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from hivemind.servers.arbiter.bell import Bell
from hivemind.servers.arbiter.chain import verify
from hivemind.servers.arbiter.example import Example
from hivemind.servers.arbiter.folder import LedgerFolder, read_head
from hivemind.servers.arbiter.ledger import Ledger
from hivemind.servers.arbiter.platinum_metrics import PlatinumMetrics
from hivemind.servers.arbiter.shelf import Selection
from hivemind.servers.common.errors import MeshError
from tests.arbiter.disks import DyingDisk, FaultyDisk, Killed
from tests.arbiter.examples import example
from tests.arbiter.rig import lines_on_disk


def opened(folder: Path, **options: Any) -> LedgerFolder:
    files = LedgerFolder(folder, **{"rotate_bytes": 1 << 30, "clock": time.time, **options})
    files.refresh()
    return files


def stored(files: LedgerFolder, *numbers: int, **fields: Any) -> list[Example]:
    answers = files.commit([example(n, **fields) for n in numbers])
    assert all(isinstance(a, Example) for a in answers), answers
    return [a for a in answers if isinstance(a, Example)]


def refusal(files: LedgerFolder) -> str:
    with pytest.raises(MeshError) as error:
        files.commit([example(99)])
    return error.value.reason


def ledger_on(files: LedgerFolder) -> Ledger:
    return Ledger(files, Bell(), PlatinumMetrics(CollectorRegistry()), poll_s=0.02)


def test_a_line_is_flat_json_that_begins_with_id_and_sequence_and_ends_with_its_hash(tmp_path: Path) -> None:
    first, second = stored(opened(tmp_path), 1, 2)

    raw = (tmp_path / "training_metadata.jsonl").read_bytes().splitlines()
    lines = [json.loads(r) for r in raw]

    assert list(lines[0])[:4] == ["id", "sequence", "schema", "role"]
    assert [r[-66:-2].decode() for r in raw] == [hashlib.sha256(r[:-77]).hexdigest() for r in raw]
    assert lines[0]["prev_sha256"] == "0" * 64
    assert lines[1]["prev_sha256"] == lines[0]["sha256"] == first.sha256
    assert [(line["id"], line["sequence"]) for line in lines] == [(first.id, 1), (second.id, 2)]
    assert lines[0]["role"] == "arbiter_refined"
    assert lines[0]["final_platinum_answer"] == "Water boils at 100 °C at sea level."
    assert lines[0]["provenance"]["decisions"] == ["The Oracle corrected the number."]
    assert lines[0]["messages"][1] == {"role": "user", "content": "What is the boiling point of water?", "name": ""}


def test_every_kind_of_line_has_the_same_keys(tmp_path: Path) -> None:
    files = opened(tmp_path)
    stored(files, 1, 2)
    files.forget(Selection(request_id="request-1"), reason="asked", tenant="", rotate=True)

    lines = lines_on_disk(tmp_path)

    assert [line["role"] for line in lines] == ["forgotten", "arbiter_refined", "tombstone"]
    assert len({tuple(line) for line in lines}) == 1


def test_ids_are_uuid7_and_grow_even_when_the_clock_stands_or_goes_back(tmp_path: Path) -> None:
    now = [1_800_000_000.0]
    files = opened(tmp_path, clock=lambda: now[0])
    found = stored(files, *range(5000))
    now[0] -= 3600
    found += stored(files, 1)

    ids = [e.id for e in found]

    assert ids == sorted(set(ids))
    assert all(i[14] == "7" and i[19] in "89ab" for i in ids)


def test_what_was_stored_is_read_back_whole_after_a_restart(tmp_path: Path) -> None:
    found = stored(opened(tmp_path, rotate_bytes=5000), 1, 2, 3) + stored(opened(tmp_path), 4)
    again = opened(tmp_path)

    assert [again.shelf.read(e.sequence) for e in found] == found
    assert [again.shelf.find(e.id) for e in found] == found
    assert again.shelf.find("01a20fae-74dc-7007-b92b-be166d337674") is None
    assert again.shelf.find("nonsense") is None


def test_lines_of_a_batch_share_one_sync(tmp_path: Path) -> None:
    disk = FaultyDisk()
    files = opened(tmp_path, disk=disk)
    before = disk.calls["sync"]

    stored(files, *range(100))

    assert disk.calls["sync"] - before == 1


async def test_appends_at_the_same_time_are_gathered_and_all_are_stored(tmp_path: Path) -> None:
    disk = FaultyDisk()
    ledger = ledger_on(opened(tmp_path, disk=disk))

    found = await asyncio.gather(*(ledger.append(example(i)) for i in range(200)))
    await ledger.close()

    assert [line["id"] for line in lines_on_disk(tmp_path)] == [e.id for e in found]
    assert disk.calls["sync"] < 20


async def test_a_caller_that_gives_up_does_not_take_the_others_along(tmp_path: Path) -> None:
    ledger = ledger_on(opened(tmp_path))
    tasks = [asyncio.create_task(ledger.append(example(i))) for i in range(5)]
    await asyncio.sleep(0)
    tasks[2].cancel()

    found = await asyncio.gather(*tasks, return_exceptions=True)
    await ledger.close()

    assert [type(f) for f in found] == [Example, Example, asyncio.CancelledError, Example, Example]


async def test_one_key_at_the_same_time_has_one_effect_and_one_answer(tmp_path: Path) -> None:
    ledger = ledger_on(opened(tmp_path))

    found = await asyncio.gather(*(ledger.append(example(1, idempotency_key="k", fingerprint="f")) for _ in range(20)))
    other = await ledger.append(example(1, idempotency_key="k", tenant="t2"))
    with pytest.raises(MeshError) as error:
        await ledger.append(example(1, idempotency_key="k", fingerprint="other"))
    await ledger.close()

    assert len({e.id for e in found}) == 1
    assert error.value.reason == "IDEMPOTENCY_KEY_REUSED"
    assert other.id != found[0].id
    assert len(lines_on_disk(tmp_path)) == 2


@pytest.mark.parametrize("rotate_bytes", [1 << 30, 2000])
def test_a_key_holds_for_24_hours_also_after_restart_and_rotation(tmp_path: Path, rotate_bytes: int) -> None:
    now = [1_800_000_000.0]
    files = opened(tmp_path, clock=lambda: now[0], rotate_bytes=rotate_bytes)
    first = stored(files, 1, idempotency_key="k")[0]
    stored(files, *range(10))

    now[0] += 86_000
    again = opened(tmp_path, clock=lambda: now[0], rotate_bytes=rotate_bytes)
    assert again.shelf.repeated("t1", "k", "") == first
    assert stored(again, 1, idempotency_key="k") == [first]
    now[0] += 1000
    later = stored(again, 1, idempotency_key="k")[0]

    assert later.sequence == 12
    assert again.shelf.repeated("t1", "k", "") == later


def test_a_number_that_is_not_finite_is_refused_alone(tmp_path: Path) -> None:
    files = opened(tmp_path)

    found = files.commit([example(1), example(2, confidence=float("nan")), example(3)])

    assert [type(f) for f in found] == [Example, ValueError, Example]
    assert [line["sequence"] for line in lines_on_disk(tmp_path)] == [1, 2]


def test_two_ledgers_on_one_folder_write_one_chain(tmp_path: Path) -> None:
    one, two = opened(tmp_path, rotate_bytes=6000), opened(tmp_path, rotate_bytes=6000)

    found = [e for n in range(12) for e in stored((one, two)[n % 2], n)]
    one.refresh()
    two.refresh()

    assert [line["id"] for line in lines_on_disk(tmp_path)] == [e.id for e in found]
    assert [one.shelf.read(s) for s in range(1, 13)] == [two.shelf.read(s) for s in range(1, 13)] == found
    assert verify(tmp_path).problems == []


def test_a_key_that_another_process_took_is_known(tmp_path: Path) -> None:
    one, two = opened(tmp_path), opened(tmp_path)

    first = stored(one, 1, idempotency_key="k")

    assert stored(two, 1, idempotency_key="k") == first


# Disks that fail (FAULTS 5).


@pytest.mark.parametrize("call", ["write", "sync"])
@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ENOSPC, "STORE_FULL"),
        (errno.EDQUOT, "STORE_FULL"),
        (errno.EFBIG, "STORE_FULL"),
        (errno.EIO, "STORE_UNAVAILABLE"),
        (errno.EROFS, "STORE_UNAVAILABLE"),
    ],
)
def test_a_refusing_disk_is_told_of_and_nothing_of_it_stays(
    tmp_path: Path, call: str, number: int, reason: str
) -> None:
    disk = FaultyDisk()
    files = opened(tmp_path, disk=disk)
    before = stored(files, 1, 2)
    size = (tmp_path / "training_metadata.jsonl").stat().st_size

    disk.faults = {call: number}
    assert refusal(files) == reason
    disk.faults = {}
    left = (tmp_path / "training_metadata.jsonl").stat().st_size
    after = stored(files, 3)

    assert left == size
    assert [line["id"] for line in lines_on_disk(tmp_path)] == [e.id for e in before + after]
    assert verify(tmp_path).problems == []


def test_a_tail_that_cannot_be_cut_is_cut_before_the_next_append(tmp_path: Path) -> None:
    disk = FaultyDisk()
    files = opened(tmp_path, disk=disk)
    before = stored(files, 1)

    disk.faults = {"sync": errno.EIO, "truncate": errno.EIO}
    assert refusal(files) == "STORE_UNAVAILABLE"
    assert refusal(files) == "STORE_UNAVAILABLE"
    assert len(lines_on_disk(tmp_path)) == 2
    disk.faults = {}
    after = stored(files, 2)

    assert [line["id"] for line in lines_on_disk(tmp_path)] == [e.id for e in before + after]


def test_short_writes_are_gone_on_with(tmp_path: Path) -> None:
    files = opened(tmp_path, disk=FaultyDisk(short=7))

    found = stored(files, 1, 2)

    assert [line["id"] for line in lines_on_disk(tmp_path)] == [e.id for e in found]


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_the_systems_own_limit_on_files_is_survived(tmp_path: Path) -> None:
    files = opened(tmp_path)
    stored(files, 1)

    with largest_file((tmp_path / "training_metadata.jsonl").stat().st_size + 100):
        assert refusal(files) == "STORE_FULL"
    stored(files, 2)

    assert [line["sequence"] for line in lines_on_disk(tmp_path)] == [1, 2]


def test_a_rotation_that_fails_leaves_what_was_stored_and_is_tried_again(tmp_path: Path) -> None:
    disk = FaultyDisk()
    files = opened(tmp_path, disk=disk, rotate_bytes=1000)

    disk.faults = {"replace": errno.ENOSPC}
    stored(files, 1)
    assert not list(tmp_path.glob("training_metadata-*.jsonl"))
    disk.faults = {}
    stored(files, 2)

    assert [line["sequence"] for line in lines_on_disk(tmp_path)] == [1, 2]
    assert len(list(tmp_path.glob("training_metadata-*.jsonl"))) == 1


async def test_appends_wait_for_a_folder_that_cannot_be_used_and_go_on_without_a_restart(tmp_path: Path) -> None:
    (tmp_path / "datasets").write_text("a file stands where the folder should be")
    ledger = ledger_on(LedgerFolder(tmp_path / "datasets", rotate_bytes=1 << 30, clock=time.time))
    with pytest.raises(MeshError) as error:
        await ledger.append(example(1))
    assert ledger.missing
    (tmp_path / "datasets").unlink()

    found = await ledger.append(example(1))
    await ledger.close()

    assert error.value.reason == "STORE_UNAVAILABLE"
    assert found.sequence == 1
    assert not ledger.missing


def test_a_lock_that_is_never_given_back_is_told_of(tmp_path: Path) -> None:
    one, two = opened(tmp_path), opened(tmp_path, lock_wait_s=0.05)

    with one._lock.held():
        assert refusal(two) == "STORE_UNAVAILABLE"
    stored(two, 1)


# Lines that are torn, changed or lost (FAULTS 4, 38).


def test_a_torn_last_line_is_cut_and_reported(tmp_path: Path) -> None:
    found = stored(opened(tmp_path), 1, 2)
    with (tmp_path / "training_metadata.jsonl").open("ab") as file:
        file.write(b'{"id":"01a20fae-74dc-7007-b92b-be166d337674","sequence":3,"sch')
    torn: list[int] = []

    files = opened(tmp_path, on_torn=torn.append)
    found += stored(files, 3)

    assert torn == [62]
    assert [line["id"] for line in lines_on_disk(tmp_path)] == [e.id for e in found]


def test_a_whole_last_line_that_an_editor_left_without_newline_is_kept(tmp_path: Path) -> None:
    found = stored(opened(tmp_path), 1, 2)
    path = tmp_path / "training_metadata.jsonl"
    path.write_bytes(path.read_bytes().rstrip(b"\n"))

    found += stored(opened(tmp_path), 3)

    assert [line["id"] for line in lines_on_disk(tmp_path)] == [e.id for e in found]


def edited(path: Path, number: int, change: Any) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    lines[number - 1] = change(lines[number - 1])
    path.write_bytes(b"".join(lines))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda line: line.replace(b"boils at 100", b"boils at 999"), "was changed"),
        (lambda line: b"not json at all\n", "is not JSON"),
        (lambda line: b"\xff\xfe\x00\n", "is not JSON"),
        (lambda line: b"[1, 2]\n", "is not an object"),
        (lambda line: b"", "missing"),
        (lambda line: line + line, "out of order or stands twice"),
    ],
)
@pytest.mark.parametrize("rotate_bytes", [1 << 30, 3000])
def test_a_bad_line_is_counted_skipped_and_named_and_never_fatal(
    tmp_path: Path, change: Any, problem: str, rotate_bytes: int
) -> None:
    found = stored(opened(tmp_path, rotate_bytes=rotate_bytes), 1, 2, 3)
    path = sorted(tmp_path.glob("*.jsonl"))[0]
    edited(path, 2, change)

    files = opened(tmp_path)
    after = stored(files, 4)[0]
    verdict = verify(tmp_path)

    assert after.sequence == 4
    assert files.shelf.read(1) == found[0]
    assert files.shelf.read(3) == found[2]
    assert problem in verdict.problems[0].problem
    assert (verdict.problems[0].file, verdict.problems[0].line) == (path.name, 3 if "twice" in problem else 2)
    assert len(verdict.problems) == 1
    assert files.shelf.bad_lines == (0 if problem == "missing" else 1)


def test_a_line_that_is_changed_while_the_server_runs_is_skipped_when_it_is_read(tmp_path: Path) -> None:
    files = opened(tmp_path)
    found = stored(files, 1, 2)
    path = tmp_path / "training_metadata.jsonl"
    data = path.read_bytes()
    with path.open("r+b") as file:
        file.seek(data.index(b"draft 1"))
        file.write(b"DRAFT 1")

    assert files.shelf.read(1) is None
    assert files.shelf.read(1) is None
    assert files.shelf.read(2) == found[1]
    assert files.shelf.bad_lines == 1


def test_lines_missing_at_the_end_are_found_and_their_sequences_not_given_again(tmp_path: Path) -> None:
    stored(opened(tmp_path), 1, 2, 3)
    path = tmp_path / "training_metadata.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:1]))

    assert "lines 2 to 3 were stored" in verify(tmp_path).problems[0].problem
    files = opened(tmp_path)

    assert stored(files, 4)[0].sequence == 4
    assert "lines 2 to 3 are missing" in verify(tmp_path).problems[0].problem
    assert opened(tmp_path).shelf.read(4) is not None


def test_the_note_of_the_newest_line_is_made_anew_where_it_was_taken_away(tmp_path: Path) -> None:
    files = opened(tmp_path)
    stored(files, 1)
    (tmp_path / ".platinum" / "head").unlink()

    newest = stored(files, 2)[0]

    head = read_head(tmp_path / ".platinum")
    assert head is not None
    assert (head.sequence, head.sha256) == (2, newest.sha256)


def test_reordered_lines_are_found(tmp_path: Path) -> None:
    stored(opened(tmp_path), 1, 2, 3, 4)
    path = tmp_path / "training_metadata.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], lines[2], lines[1], lines[3]]))

    assert verify(tmp_path).problems[0].line == 2


def test_a_line_that_was_made_anew_with_a_right_hash_breaks_the_chain(tmp_path: Path) -> None:
    stored(opened(tmp_path), 1, 2, 3)

    def forged(line: bytes) -> bytes:
        body = line[:-78].replace(b"draft 2", b"draft X")
        return body + b',"sha256":"' + hashlib.sha256(body).hexdigest().encode() + b'"}\n'

    edited(tmp_path / "training_metadata.jsonl", 2, forged)

    problems = verify(tmp_path).problems
    assert [(p.line, "does not carry on" in p.problem) for p in problems] == [(3, True)]


def test_verify_tells_a_torn_end_from_a_fault(tmp_path: Path) -> None:
    stored(opened(tmp_path), 1)
    with (tmp_path / "training_metadata.jsonl").open("ab") as file:
        file.write(b'{"id"')

    verdict = verify(tmp_path)

    assert verdict.holds
    assert verdict.torn == 5


def test_an_absent_wrong_or_foreign_index_is_made_again(tmp_path: Path) -> None:
    found = stored(opened(tmp_path, rotate_bytes=1000), 1) + stored(opened(tmp_path, rotate_bytes=1000), 2)
    indices = sorted((tmp_path / ".platinum").glob("*.index"))
    good = [i.read_bytes() for i in indices]
    for broken in (b"", b"garbage", good[0][:-5], good[0][:-1] + b"\x01", good[1]):
        indices[0].write_bytes(broken)
        files = opened(tmp_path)
        assert [files.shelf.read(1), files.shelf.read(2)] == found
        assert len(indices[0].read_bytes()) == len(good[0])
    shutil.rmtree(tmp_path / ".platinum")

    assert opened(tmp_path).shelf.counts().examples == 2


def test_a_start_reads_only_what_the_active_segments_index_lacks(tmp_path: Path) -> None:
    found = stored(opened(tmp_path, index_bytes=1), 1, 2)
    files = opened(tmp_path)
    found += stored(files, 3)
    name = files.forget(found[0].id, reason="", tenant="", rotate=False)
    again = opened(tmp_path)

    assert name == [found[0].id]
    assert [again.shelf.read(s) for s in (1, 2, 3)] == [None, *found[1:]]
    assert stored(again, 5)[0].sequence == 5
    assert verify(tmp_path).problems == []


def test_an_active_segment_that_was_edited_before_the_end_of_its_index_is_read_anew(tmp_path: Path) -> None:
    found = stored(opened(tmp_path, index_bytes=1), 1, 2, 3)
    stored(opened(tmp_path), 4)
    edited(tmp_path / "training_metadata.jsonl", 1, lambda line: b"gone\n")

    files = opened(tmp_path)

    assert [files.shelf.read(s) for s in (1, 2, 3)] == [None, *found[1:]]
    assert files.shelf.bad_lines == 1


# Forgetting.


def all_bytes(folder: Path) -> bytes:
    return b"".join(p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file())


@pytest.mark.parametrize("rotate_bytes", [1 << 30, 3000])
def test_forgotten_texts_leave_the_disk_and_the_chain_holds(tmp_path: Path, rotate_bytes: int) -> None:
    files = opened(tmp_path, rotate_bytes=rotate_bytes)
    kept = [e for n in range(5) for e in stored(files, n)]
    secret = [e for n in range(5) for e in stored(files, n, tenant="gone-ltd", draft=f"the secret {n}")]

    ids = files.forget(Selection(tenant="gone-ltd"), reason="asked to", tenant="", rotate=False)
    assert ids == [e.id for e in secret]
    assert all(files.shelf.find(i) is None for i in ids)
    assert b"the secret 3" in all_bytes(tmp_path)
    files.forget(Selection(tenant="gone-ltd"), reason="again", tenant="", rotate=True)

    assert b"the secret" not in all_bytes(tmp_path)
    assert b"gone-ltd" not in all_bytes(tmp_path)
    verdict = verify(tmp_path)
    assert (verdict.problems, verdict.forgotten, verdict.examples) == ([], 5, 5)
    for again in (files, opened(tmp_path)):
        assert [again.shelf.find(e.id) for e in kept] == kept
        assert again.shelf.counts().forgotten == 5
        assert again.shelf.counts().by_tenant == {"t1": 5}
    stubs = [line for line in lines_on_disk(tmp_path) if line["role"] == "forgotten"]
    assert [(s["id"], s["sequence"], s["sha256"]) for s in stubs] == [(e.id, e.sequence, e.sha256) for e in secret]


def test_the_next_rotation_takes_forgotten_texts_off_the_disk_by_itself(tmp_path: Path) -> None:
    files = opened(tmp_path, rotate_bytes=20_000)
    name = stored(files, 1, draft="the secret")[0].id
    files.forget(name, reason="", tenant="", rotate=False)

    stored(files, *range(20))

    assert b"the secret" not in all_bytes(tmp_path)
    assert verify(tmp_path).problems == []


def test_another_process_forgets_as_well_and_reads_the_rewritten_files(tmp_path: Path) -> None:
    one, two = opened(tmp_path), opened(tmp_path)
    found = stored(one, 1, 2, 3)
    two.refresh()

    one.forget(found[1].id, reason="", tenant="", rotate=True)
    assert two.changed_outside()
    two.refresh()

    assert [two.shelf.read(s) for s in (1, 2, 3)] == [found[0], None, found[2]]
    assert stored(two, 4)[0].sequence == 5


def test_a_stub_that_no_tombstone_founds_is_found(tmp_path: Path) -> None:
    files = opened(tmp_path)
    found = stored(files, 1, 2, 3)
    files.forget(found[0].id, reason="", tenant="", rotate=True)
    path = tmp_path / "training_metadata-000001.jsonl"
    stub, second, *rest = path.read_bytes().splitlines(keepends=True)
    fields = json.loads(stub)
    name = {k: json.loads(second)[k] for k in ("id", "sequence", "create_time", "prev_sha256", "sha256")}
    forged = json.dumps({**fields, **name}, separators=(",", ":")).encode() + b"\n"
    path.write_bytes(b"".join([stub, forged, *rest]))

    problems = verify(tmp_path).problems

    assert [(p.line, p.problem) for p in problems] == [(2, "is a stub that no tombstone founds")]


def test_a_stub_that_holds_a_text_is_found(tmp_path: Path) -> None:
    files = opened(tmp_path)
    found = stored(files, 1, 2)
    files.forget(found[0].id, reason="", tenant="", rotate=True)
    edited(
        tmp_path / "training_metadata-000001.jsonl", 1, lambda line: line.replace(b'"draft":""', b'"draft":"smuggled"')
    )

    assert verify(tmp_path).problems[0].problem == "is a stub that holds a text"
    assert opened(tmp_path).shelf.read(1) is None


# Random histories.

STEPS = st.one_of(
    st.tuples(st.just("append"), st.integers(1, 8)),
    st.tuples(st.just("forget"), st.integers(0, 200)),
    st.tuples(st.just("purge"), st.integers(0, 200)),
    st.tuples(st.just("reopen"), st.just(0)),
    st.tuples(st.just("die"), st.tuples(st.integers(0, 6), st.floats(0, 1), st.booleans(), st.integers(1, 8))),
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(STEPS, min_size=3, max_size=25),
    st.sampled_from([3000, 20_000, 1 << 30]),
    st.sampled_from([1, 4000, 1 << 30]),
    st.integers(0, 1 << 30),
)
def test_whatever_happens_what_was_acknowledged_stands_in_the_file_once_and_the_chain_holds(
    tmp_path_factory: pytest.TempPathFactory,
    steps: list[tuple[str, Any]],
    rotate_bytes: int,
    index_bytes: int,
    seed: int,
) -> None:
    folder = tmp_path_factory.mktemp("ledger")
    rng = random.Random(seed)
    files = opened(folder, rotate_bytes=rotate_bytes, index_bytes=index_bytes)
    told: dict[str, str] = {}
    forgotten: set[str] = set()
    for kind, value in steps:
        if kind == "append":
            told |= {e.id: e.sha256 for e in stored(files, *range(value), draft="d" * rng.randrange(400))}
        elif kind in ("forget", "purge") and told:
            name = list(told)[value % len(told)]
            forgotten |= set(files.forget(name, reason="r", tenant="", rotate=kind == "purge"))
        elif kind == "die":
            dying = LedgerFolder(
                folder,
                rotate_bytes=rotate_bytes,
                index_bytes=index_bytes,
                clock=time.time,
                disk=DyingDisk(value[0], value[1]),
            )
            name = list(told)[value[3] % len(told)] if told else ""
            try:
                if value[2] and name:
                    forgotten |= set(dying.forget(name, reason="r", tenant="", rotate=True))
                else:
                    told |= {e.id: e.sha256 for e in stored(dying, *range(value[3]))}
            except Killed:
                if value[2] and name and dying.shelf.segments:
                    files = opened(folder, rotate_bytes=rotate_bytes, index_bytes=index_bytes)
                    forgotten |= {name} if files.shelf.find(name) is None else set()
        elif kind == "reopen":
            files = opened(folder, rotate_bytes=rotate_bytes, index_bytes=index_bytes)
    files.refresh()

    lines = lines_on_disk(folder)
    verdict = verify(folder)

    assert verdict.problems == []
    assert [line["sequence"] for line in lines] == list(range(1, len(lines) + 1))
    on_disk = {line["id"]: line["sha256"] for line in lines}
    assert len(on_disk) == len(lines)
    assert {i: on_disk.get(i) for i in told} == told
    for name in told:
        assert (files.shelf.find(name) is None) == (name in forgotten)
