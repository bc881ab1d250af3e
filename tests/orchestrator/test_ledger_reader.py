"""The reader of the ledger's files, on files that the Arbiter wrote: FAULTS 38."""

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hivemind.servers.arbiter.shelf import Selection
from hivemind.servers.orchestrator.ledger import Batch, Draft, LedgerReader, Place
from tests.orchestrator.ledgers import opened, store

ACTIVE = "training_metadata.jsonl"


def all_of(reader: LedgerReader, place: Place | None = None) -> Batch:
    found = reader.read(place or Place())
    while found.more:
        following = reader.read(found.place)
        following.drafts[:0] = found.drafts
        following.forgotten |= found.forgotten
        found = following
    return found


def test_an_absent_or_empty_folder_has_nothing_to_tell(tmp_path: Path) -> None:
    assert all_of(LedgerReader(tmp_path / "nowhere")) == Batch(Place())
    assert all_of(LedgerReader(tmp_path)) == Batch(Place())


def test_a_draft_tells_who_made_it_and_what_it_was_worth(tmp_path: Path) -> None:
    example = store(opened(tmp_path), "math", 0.25, adapter="implementer-v000002", cost=77, tenant="t9")

    (draft,) = all_of(LedgerReader(tmp_path)).drafts

    assert draft == Draft(
        id=example.id, sequence=1, when=pytest.approx(example.created, abs=0.002), tenant="t9", domain="math",
        model="courier", adapter="implementer-v000002", score=0.25, cost_micros=77, human=False,
    )  # fmt: skip


def test_only_what_is_new_is_read_again(tmp_path: Path) -> None:
    files, reader = opened(tmp_path), LedgerReader(tmp_path)
    store(files, "math", 0.1)
    first = all_of(reader)
    store(files, "law", 0.2)

    second = all_of(reader, first.place)

    assert [d.domain for d in second.drafts] == ["law"]
    assert all_of(reader, second.place).drafts == []


def test_a_rotation_loses_and_repeats_nothing(tmp_path: Path) -> None:
    files, reader = opened(tmp_path, rotate_bytes=2000), LedgerReader(tmp_path)
    found, place = [], Place()
    for i in range(12):
        store(files, f"d{i}", 0.5)
        batch = all_of(reader, place)
        place = batch.place
        found += [d.sequence for d in batch.drafts]

    assert len(list(tmp_path.glob("training_metadata-*.jsonl"))) > 1
    assert found == list(range(1, 13))


def test_a_torn_line_is_left_until_it_is_whole(tmp_path: Path) -> None:
    files, reader = opened(tmp_path), LedgerReader(tmp_path)
    store(files, "math", 0.1)
    store(files, "law", 0.2)
    whole = (tmp_path / ACTIVE).read_bytes()
    (tmp_path / ACTIVE).write_bytes(whole[:-10])

    torn = all_of(reader)
    (tmp_path / ACTIVE).write_bytes(whole)
    rest = all_of(reader, torn.place)

    assert [d.domain for d in torn.drafts] == ["math"]
    assert [d.domain for d in rest.drafts] == ["law"]
    assert rest.place.bad_lines == 0


@pytest.mark.parametrize(
    "bad",
    [
        b"nonsense",
        b"",
        b"[]",
        b'{"role":"arbiter_refined"}',
        b'{"id":1,"sequence":"x","schema":1,"role":"a"}',
        b"\xff\xfe",
    ],
)
def test_bad_lines_are_counted_and_skipped(tmp_path: Path, bad: bytes) -> None:
    files, reader = opened(tmp_path), LedgerReader(tmp_path)
    store(files, "math", 0.1)
    store(files, "law", 0.2)
    first, second = (tmp_path / ACTIVE).read_bytes().splitlines()
    (tmp_path / ACTIVE).write_bytes(b"\n".join([first, bad, second, b""]))

    found = all_of(reader)

    assert [d.domain for d in found.drafts] == ["math", "law"]
    assert (found.place.bad_lines, found.place.sequence) == (1, 2)


def test_a_line_that_was_changed_is_a_bad_one(tmp_path: Path) -> None:
    store(opened(tmp_path), "math", 0.1)
    path = tmp_path / ACTIVE
    path.write_bytes(path.read_bytes().replace(b'"draft_score":0.1', b'"draft_score":0.9'))

    found = all_of(LedgerReader(tmp_path))

    assert found.drafts == []
    assert found.place.bad_lines == 1


def test_what_is_forgotten_is_named_and_a_rewritten_ledger_is_gone_on_with(tmp_path: Path) -> None:
    files, reader = opened(tmp_path), LedgerReader(tmp_path)
    gone = store(files, "math", 0.1, tenant="gone")
    store(files, "law", 0.2)
    place = all_of(reader).place

    files.forget(Selection(tenant="gone"), reason="asked", tenant="", rotate=True)
    store(files, "code", 0.3)
    found = all_of(reader, place)

    assert found.forgotten == {gone.id}
    assert [d.domain for d in found.drafts] == ["code"]
    assert [d.domain for d in all_of(reader).drafts] == ["law", "code"]
    assert reader.forgotten() == {gone.id}


def test_the_domains_of_a_range_of_sequences(tmp_path: Path) -> None:
    files = opened(tmp_path, rotate_bytes=2000)
    for domain in ("math", "law", "code", "law", "ethics"):
        store(files, domain, 0.1)

    reader = LedgerReader(tmp_path, batch_bytes=100)

    assert reader.domains_between(2, 4) == ("code", "law")
    assert reader.domains_between(6, 9) == ()


@given(
    st.lists(st.sampled_from(["store", "read", "bad", "forget"]), max_size=25),
    st.sampled_from([400, 3_000, 1 << 20]),
    st.sampled_from([1, 2_000, 1 << 20]),
)
@settings(max_examples=40, deadline=None)
def test_reading_in_pieces_gives_what_reading_at_once_gives(moves: list[str], rotate: int, batch_bytes: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files, reader = opened(folder, rotate_bytes=rotate), LedgerReader(folder, batch_bytes=batch_bytes)
        place, seen, told, gone = Place(), [], [], set()
        for i, move in enumerate(moves):
            if move == "store":
                told.append(store(files, f"d{i}", 0.5))
            elif move == "bad" and (folder / ACTIVE).exists():
                with (folder / ACTIVE).open("ab") as file:
                    file.write(b"garbage\n")
                files = opened(folder, rotate_bytes=rotate)
            elif move == "forget" and told:
                gone.add(told[0].sequence)
                files.forget(told.pop(0).id, reason="", tenant="", rotate=False)
            elif move == "read":
                batch = all_of(reader, place)
                place = batch.place
                seen += [d.sequence for d in batch.drafts]
        batch = all_of(reader, place)
        seen += [d.sequence for d in batch.drafts]

        lines = [raw for f in sorted(folder.glob("training_*.jsonl")) for raw in f.read_bytes().splitlines()]
        expected = sorted(
            json.loads(raw)["sequence"] for raw in lines if raw != b"garbage" and b'"role":"arbiter_refined"' in raw
        )
        assert seen == sorted(set(seen))
        assert [s for s in seen if s not in gone] == [s for s in expected if s not in gone]
        if not gone:
            assert batch.place.bad_lines == sum(raw == b"garbage" for raw in lines)
