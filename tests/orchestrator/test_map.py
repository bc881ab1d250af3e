"""The cognitive map: from ledger, opinions and champions; kept in a file, rebuilt at any time. FAULTS 37 and 38."""

import errno
import json
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from unittest import mock

import pytest

from hivemind.servers.arbiter.shelf import Selection
from hivemind.servers.common.errors import MeshError
from hivemind.servers.orchestrator.cognitive_map import CognitiveMap
from hivemind.servers.orchestrator.domains import Skill
from hivemind.servers.orchestrator.ledger import LedgerReader, Place
from hivemind.servers.orchestrator.ports import Opinion
from tests.orchestrator.ledgers import opened, store
from tests.orchestrator.rig import Rig, adapter, rig
from tests.support.redis_process import RedisProcess


@pytest.fixture
async def running(empty_redis: RedisProcess, tmp_path: Path) -> AsyncIterator[Rig]:
    async with rig(empty_redis, tmp_path) as made:
        yield made


def opinion(domain: str, score: float, **fields: object) -> Opinion:
    given = {"when": 0.0, "tenant": "t1", "source": "FEEDBACK", "alias": "courier", "adapter": "", **fields}
    return Opinion(domain=domain, score=score, **given)  # type: ignore[arg-type]


def figures(found: CognitiveMap) -> dict[str, tuple[float, float, float]]:
    return {s.name: (s.n, s.mean, s.confidence) for s in found.skills}


def skill(found: CognitiveMap, name: str) -> Skill:
    known = found.skill(name)
    assert known is not None
    return known


def assert_same(one: CognitiveMap, other: CognitiveMap) -> None:
    a, b = figures(one), figures(other)
    assert a.keys() == b.keys()
    for name, numbers in a.items():
        assert numbers == pytest.approx(b[name], abs=1e-9)


async def test_the_scores_of_drafts_make_a_skill(running: Rig) -> None:
    files = opened(running.datasets)
    for _ in range(20):
        store(files, "math", 0.2)
        store(files, "facts", 0.9)

    found, results = await running.mapped()

    assert [r.outcome for r in results] == ["DONE", "DONE"]
    assert skill(found, "math").mean == pytest.approx((1 + 4) / 22, abs=1e-3)
    assert skill(found, "facts").confidence > 0.7 > 0.4 > skill(found, "math").confidence
    assert found.ledger_sequence == 40


async def test_what_master_drafted_says_nothing_of_the_courier(running: Rig) -> None:
    files = opened(running.datasets)
    store(files, "math", 0.9, model="master")
    store(files, "law", 0.9, model="")

    found, _ = await running.mapped()

    assert {s.name: s.n for s in found.skills} == {"law": pytest.approx(0.25)}


async def test_a_persons_correction_counts_against_the_draft_by_tenant(running: Rig) -> None:
    files = opened(running.datasets)
    for _ in range(3):
        store(files, "math", 0.0, refined_by="HUMAN")

    found, _ = await running.mapped()

    assert skill(found, "math").n == pytest.approx(1 + 1 / 2 + 1 / 3, abs=1e-3)
    assert skill(found, "math").mean < 0.4


async def test_opinions_count_once_whatever_happens_in_between(running: Rig) -> None:
    running.router.told = [opinion("math", 1.0, tenant=f"t{i}") for i in range(5)]
    running.router.told.append(opinion("math", 0.0, source="JUDGE"))
    running.router.told.append(opinion("math", 0.0, alias="master"))

    first, _ = await running.mapped()
    again, results = await running.mapped()
    elsewhere, _ = await running.mapped(running.another_keeper())

    assert skill(first, "math").n == pytest.approx(5.25)
    assert results[1].outcome == "SKIPPED"
    assert_same(first, again)
    assert_same(first, elsewhere)


async def test_an_absent_router_costs_its_opinions_only(running: Rig) -> None:
    store(opened(running.datasets), "math", 0.5)
    running.router.away = True

    found, results = await running.mapped()

    assert skill(found, "math").n == pytest.approx(1)
    assert "opinions are missing (PEER_UNAVAILABLE)" in results[1].note


async def test_a_new_champion_counts_with_its_held_out_score_where_it_has_learnt(running: Rig) -> None:
    files = opened(running.datasets)
    for domain in ("math", "law", "code"):
        store(files, domain, 0.0)
    await running.mapped()
    name = "implementer-v000001"
    running.registry.champion = name
    running.registry.adapters[name] = adapter(
        name,
        evaluation=(("candidate_heldout_accuracy", 0.8),),
        first_sequence=1,
        last_sequence=2,
        created=time.time(),
    )

    found, _ = await running.mapped()

    assert {s.name: s.improved_by for s in found.skills} == {"math": (name,), "law": (name,), "code": ()}
    assert skill(found, "code").n == pytest.approx(0.1, abs=1e-3)
    assert skill(found, "math").mean > 0.5


async def test_a_held_out_score_counts_as_the_answers_that_it_is_the_mean_of(running: Rig) -> None:
    files, name = opened(running.datasets), "implementer-v000001"
    for domain in ("math", "law"):
        store(files, domain, 0.0)
    running.registry.champion = name
    figures = (("held_out_exact", 0.9), ("held_out", 40.0))
    running.registry.adapters[name] = adapter(
        name, evaluation=figures, first_sequence=1, last_sequence=2, created=time.time()
    )

    found, _ = await running.mapped()

    assert {s.name: s.n for s in found.skills} == {s: pytest.approx(20.1, abs=0.1) for s in ("math", "law")}
    assert skill(found, "math").confidence > 0.7


@pytest.mark.parametrize(
    "broken", [b"", b"{", b"[]", b"null", b'{"version": 1}', b'{"version": 9, "ledger": {}}', b"\x00" * 100]
)
async def test_a_corrupt_file_is_rebuilt_from_the_ledger(running: Rig, broken: bytes) -> None:
    files = opened(running.datasets)
    for i in range(10):
        store(files, "math", i / 10)
    running.router.told = [opinion("math", 1.0)]
    before, _ = await running.mapped()
    running.file.write_bytes(broken)
    store(files, "law", 0.5)

    after, results = await running.mapped(running.another_keeper())

    assert results[0].note.startswith("all 11 lines of the ledger, because no map file")
    assert skill(after, "math").n == pytest.approx(skill(before, "math").n, abs=1e-3)
    written = json.loads(running.file.read_bytes())
    assert [s["name"] for s in written["map"]["skills"]] == ["law", "math"]


async def test_rebuilt_and_grown_are_the_same(running: Rig) -> None:
    files = opened(running.datasets, rotate_bytes=5_000)
    for i in range(30):
        store(files, ("math", "law", "code")[i % 3], (i % 7) / 7)
        if i % 4 == 0:
            grown, _ = await running.mapped()
    grown, _ = await running.mapped()
    running.file.unlink()

    rebuilt, _ = await running.mapped(running.another_keeper())

    assert_same(grown, rebuilt)


async def test_what_is_forgotten_no_longer_counts(running: Rig) -> None:
    files = opened(running.datasets)
    store(files, "math", 1.0, tenant="gone")
    store(files, "math", 0.0, tenant="stays")
    await running.mapped()

    files.forget(Selection(tenant="gone"), reason="asked", tenant="", rotate=False)
    found, results = await running.mapped()

    assert "forgotten" in results[0].note
    assert skill(found, "math").n == pytest.approx(1)
    assert skill(found, "math").mean == pytest.approx(1 / 3)


async def test_bad_lines_are_told(running: Rig) -> None:
    files = opened(running.datasets)
    store(files, "math", 0.5)
    with (running.datasets / "training_metadata.jsonl").open("ab") as ledger:
        ledger.write(b"not a line\n")

    found, results = await running.mapped()

    assert found.bad_lines == 1
    assert "1 bad" in results[0].note
    assert found.skill("math")


async def test_a_former_leader_can_write_neither_map_nor_file(running: Rig) -> None:
    store(opened(running.datasets), "math", 0.5)
    await running.mapped()
    newer = running.another_keeper()
    await newer._store.take("other", 60.0)  # it is held: nothing changes
    client = running.store._redis
    await client.set("orchestrator:fence", 7)
    before = running.file.read_bytes()
    store(opened(running.datasets), "law", 0.5)
    await running.keeper.read_ledger(running.lease.token)

    with pytest.raises(MeshError) as refused:
        await running.keeper.update(running.lease.token)

    assert refused.value.reason == "STALE_FENCING_TOKEN"
    assert running.file.read_bytes() == before


async def test_a_file_of_a_newer_leader_is_left_alone(running: Rig) -> None:
    store(opened(running.datasets), "math", 0.5)
    await running.mapped()
    data = json.loads(running.file.read_bytes())
    running.file.write_text(json.dumps({**data, "fencing_token": 99}))
    store(opened(running.datasets), "law", 0.5)

    with pytest.raises(MeshError) as refused:
        await running.mapped()

    assert refused.value.reason == "STALE_FENCING_TOKEN"


async def test_a_full_disk_leaves_the_old_file_and_the_map_is_written_later(running: Rig) -> None:
    files = opened(running.datasets)
    store(files, "math", 0.5)
    await running.mapped()
    before = running.file.read_bytes()
    store(files, "law", 0.5)

    with mock.patch.object(os, "fsync", side_effect=OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))):
        found, results = await running.mapped()
    assert results[1].outcome == "FAILED"
    assert found.skill("law")
    assert running.file.read_bytes() == before
    assert [p.name for p in running.file.parent.iterdir() if not p.name.endswith(".lock")] == [running.file.name]

    _, results = await running.mapped()
    assert results[1].outcome == "DONE"
    assert b'"law"' in running.file.read_bytes()


async def test_a_step_that_is_cut_short_goes_on_where_it_was(running: Rig) -> None:
    files = opened(running.datasets)
    for _ in range(10):
        store(files, "math", 0.5)
    reader = LedgerReader(running.datasets, batch_bytes=1)
    keeper = running.another_keeper()
    keeper._reader = reader
    reads = 0
    real = reader.read

    def interrupted(place: Place) -> object:
        nonlocal reads
        reads += 1
        if reads % 7 == 0:
            raise TimeoutError
        return real(place)

    with mock.patch.object(reader, "read", interrupted):
        for _ in range(10):
            try:
                await keeper.read_ledger(running.lease.token)
                break
            except TimeoutError:
                continue
    await keeper.update(running.lease.token)

    found = await running.store.shared_map()
    assert found is not None
    assert skill(found, "math").n == pytest.approx(10, abs=1e-2)
    assert reads < 30
