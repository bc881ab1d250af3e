"""Roles, traffic, promotion and rollback over gRPC, on a real Redis with real directories."""

import asyncio
import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hivemind.servers.adapter_registry.base_model import BaseModel
from hivemind.servers.adapter_registry.ports import ReplicaState
from hivemind.v1 import adapter_registry_pb2 as pb
from tests.support.peft import CONFIG, WEIGHTS, write_adapter
from tests.support.redis_process import RedisProcess
from tests.support.registry import ROLE, Rig, reason_or_champion, refused, running_registry

HOLD, PROMOTE = pb.PreviewPromotionResponse.HOLD, pb.PreviewPromotionResponse.PROMOTE


async def test_a_registered_directory_is_an_immutable_version_with_its_meta(rig: Rig) -> None:
    adapter = await rig.register()

    folder = rig.home / "adapters" / adapter.path
    assert adapter.id == "implementer-v000001"
    assert adapter.path == "implementer/v000001"
    assert adapter.state == pb.Adapter.REGISTERED
    assert adapter.base_model == "courier"
    assert adapter.base_revision.startswith("sha256:")
    assert adapter.sha256 == hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    meta = json.loads((folder / "adapter_meta.json").read_text())
    assert (meta["id"], meta["sha256"], meta["rank"]) == (adapter.id, adapter.sha256, 8)
    assert sorted(p.name for p in folder.iterdir()) == [CONFIG, "adapter_meta.json", WEIGHTS]


async def test_what_the_trainer_wrote_in_the_meta_is_kept(rig: Rig) -> None:
    folder = write_adapter(rig.home / "incoming" / "trained", rig.base.shapes)
    told = {"base_model": "courier", "first_sequence": 5, "last_sequence": 90, "evaluation": {"held_out_loss": 1.5},
            "data_licence": "CC-BY-4.0", "hyper_parameters": {"lr": 0.0005}}  # fmt: skip
    (folder / "adapter_meta.json").write_text(json.dumps(told))
    parent = await rig.register()

    adapter = await rig.stub.RegisterAdapter(
        pb.RegisterAdapterRequest(role=ROLE, path="incoming/trained", parent=parent.id)
    )

    assert (adapter.first_sequence, adapter.last_sequence, adapter.data_licence) == (5, 90, "CC-BY-4.0")
    assert adapter.evaluation["held_out_loss"] == 1.5
    assert adapter.parent == parent.id
    meta = json.loads((rig.home / "adapters" / adapter.path / "adapter_meta.json").read_text())
    assert meta["hyper_parameters"] == {"lr": 0.0005}


async def test_the_same_weights_and_configuration_are_registered_once(rig: Rig) -> None:
    first = await rig.register(seed=7)
    again = await rig.register(seed=7)
    write_adapter(rig.home / "incoming" / "scaled", rig.base.shapes, seed=7, lora_alpha=8)
    scaled = await rig.stub.RegisterAdapter(pb.RegisterAdapterRequest(role=ROLE, path="incoming/scaled"))

    assert again.id == first.id
    assert scaled.id != first.id
    stored = sorted(p.name for p in (rig.home / "adapters" / ROLE).iterdir())
    assert len(stored) == 2


async def test_adapters_and_events_are_paged_newest_first(rig: Rig) -> None:
    made = [(await rig.register()).id for _ in range(5)]

    ids, token = [], ""
    while True:
        page = await rig.stub.ListAdapters(pb.ListAdaptersRequest(page_size=2, page_token=token))
        ids += [a.id for a in page.adapters]
        token = page.next_page_token
        if not token:
            break
    events = await rig.events()

    assert ids == made[::-1]
    assert [e.adapter_id for e in events] == made[::-1]
    assert [e.sequence for e in events] == [5, 4, 3, 2, 1]
    bad = await refused(rig.stub.ListAdapters(pb.ListAdaptersRequest(page_token="x")))
    assert bad.reason == "INVALID_FIELD"


async def test_an_adapter_passes_through_its_states(rig: Rig) -> None:
    adapter = (await rig.register()).id

    async def state() -> str:
        found = await rig.stub.GetAdapter(pb.GetAdapterRequest(id=adapter))
        return pb.Adapter.State.Name(found.state)

    seen = [await state()]
    await rig.traffic(adapter, 0, shadow=True)
    seen.append(await state())
    await rig.traffic(adapter, 0.05)
    seen.append(await state())
    await rig.promote(adapter, override=True, reason="why not")
    seen.append(await state())
    await rig.rollback(reason="it was worse")
    seen.append(await state())

    assert seen == ["REGISTERED", "SHADOW", "CHALLENGER", "CHAMPION", "RETIRED"]
    kinds = [pb.AdapterEvent.Kind.Name(e.kind) for e in await rig.events()]
    assert kinds == ["ROLLED_BACK", "PROMOTED", "TRAFFIC_CHANGED", "TRAFFIC_CHANGED", "REGISTERED"]


async def test_a_rollback_goes_to_the_champion_before_and_at_last_to_the_base_model(rig: Rig) -> None:
    first, second = await rig.champion(), await rig.champion()

    assert (await rig.state()).previous_champion == first
    assert (await rig.rollback()).champion == first
    assert (await rig.rollback(expected_champion=first)).champion == ""
    assert (await refused(rig.rollback())).reason == "INVALID_FIELD"
    assert [e.adapter_id for e in await rig.events()][:2] == ["", first]
    assert (await rig.promote(second, override=True, reason="again")).previous_champion == ""


@pytest.mark.parametrize(
    ("traffic", "shadow"),
    [(0.6, False), (-0.1, False), (0.1, True)],
    ids=["too much", "negative", "shadow with traffic"],
)
async def test_traffic_that_a_role_cannot_give_is_refused(rig: Rig, traffic: float, shadow: bool) -> None:
    adapter = await rig.register()

    assert (await refused(rig.traffic(adapter.id, traffic, shadow=shadow))).reason == "INVALID_FIELD"


async def test_challengers_together_get_half_at_most(rig: Rig) -> None:
    await rig.challenger(0.3)
    second = await rig.register()

    assert (await refused(rig.traffic(second.id, 0.25))).reason == "INVALID_FIELD"
    assert len((await rig.traffic(second.id, 0.2)).challenges) == 2


async def test_an_old_etag_is_refused(rig: Rig) -> None:
    adapter = await rig.register()
    etag = (await rig.state()).etag
    await rig.traffic(adapter.id, 0.01, etag=etag)

    info = await refused(rig.traffic(adapter.id, 0.05, etag=etag))

    assert info.reason == "ETAG_MISMATCH"
    assert info.metadata["etag"] == (await rig.state()).etag


async def test_unknown_roles_and_adapters_are_named(rig: Rig) -> None:
    mine = await rig.register()

    assert (
        await refused(rig.stub.GetAdapter(pb.GetAdapterRequest(id="implementer-v000099")))
    ).reason == "NOT_FOUND_RESOURCE"
    assert (await refused(rig.traffic("nonsense", 0.1))).reason == "NOT_FOUND_RESOURCE"
    nobody = pb.PreviewPromotionRequest(role="nobody", adapter_id=mine.id)
    assert (await refused(rig.stub.PreviewPromotion(nobody))).reason == "NOT_FOUND_RESOURCE"
    assert (await refused(rig.stub.GetState(pb.GetStateRequest(role="nobody")))).reason == "NOT_FOUND_RESOURCE"


async def test_a_preview_changes_nothing_and_holds_without_evidence(rig: Rig) -> None:
    adapter = await rig.challenger()
    before = await rig.state()

    preview = await rig.preview()

    assert preview.adapter_id == adapter
    assert preview.verdict == HOLD
    assert preview.expected_champion == ""
    assert 50 < preview.requests_needed < 1000
    assert await rig.state() == before
    assert (await rig.preview()).preview_hash == preview.preview_hash


async def test_a_promotion_rests_on_its_preview_and_the_champion_it_expects(rig: Rig) -> None:
    champion = await rig.champion()
    adapter = await rig.challenger()
    await rig.judge(adapter, champion, wins=160, losses=60)
    preview = await rig.preview(adapter)
    assert preview.verdict == PROMOTE

    state = await rig.promote(adapter, preview_hash=preview.preview_hash, expected_champion=champion)

    assert (state.champion, state.previous_champion, len(state.challenges)) == (adapter, champion, 0)
    newest = (await rig.events())[0]
    assert (newest.preview_hash, newest.previous_champion) == (preview.preview_hash, champion)
    assert "160 of 220 pairs" in newest.reason


async def test_more_pairs_of_the_same_verdict_leave_a_preview_valid(rig: Rig) -> None:
    adapter = await rig.challenger()
    await rig.judge(adapter, "", wins=160, losses=60)
    preview = await rig.preview(adapter)
    await rig.judge(adapter, "", wins=20, losses=5, name="later")

    assert (await rig.promote(adapter, preview_hash=preview.preview_hash)).champion == adapter


async def test_an_old_preview_is_refused_and_says_what_changed(rig: Rig) -> None:
    """FAULTS 29."""
    adapter = await rig.challenger()
    preview = await rig.preview(adapter)
    await rig.judge(adapter, "", wins=160, losses=60)
    verdict = await refused(rig.promote(adapter, preview_hash=preview.preview_hash, override=True, reason="now"))
    await rig.traffic(adapter, 0.25)
    revision = await refused(rig.promote(adapter, preview_hash=preview.preview_hash))

    assert (verdict.reason, verdict.metadata["changed"]) == ("STALE_PREVIEW", "verdict")
    assert (revision.reason, revision.metadata["changed"]) == ("STALE_PREVIEW", "verdict,revision")
    assert revision.metadata["preview_hash"] == (await rig.preview(adapter)).preview_hash
    assert (await refused(rig.promote(adapter, preview_hash="nonsense"))).reason == "STALE_PREVIEW"


async def test_without_evidence_only_an_override_with_a_reason_promotes(rig: Rig) -> None:
    adapter = await rig.challenger()
    preview = await rig.preview(adapter)

    missing = await refused(rig.promote(adapter, preview_hash=preview.preview_hash))
    unnamed = await refused(rig.promote(adapter))
    unexplained = await refused(rig.promote(adapter, override=True))

    assert (missing.reason, missing.metadata["verdict"]) == ("EVIDENCE_MISSING", "HOLD")
    assert missing.metadata["preview_hash"] == preview.preview_hash
    assert (unnamed.reason, unexplained.reason) == ("MISSING_FIELD", "MISSING_FIELD")
    assert (await rig.promote(adapter, override=True, reason="the board wants it")).champion == adapter
    assert (await rig.events())[0].reason == "the board wants it"


async def test_a_bodyless_promotion_takes_the_newest_challenger_with_evidence(rig: Rig) -> None:
    empty = await refused(rig.promote())
    older, newer = await rig.challenger(0.1), await rig.challenger(0, shadow=True)
    await rig.judge(older, "", wins=200, losses=20, name="older")
    missing = await refused(rig.promote())
    await rig.judge(newer, "", wins=160, losses=60)

    assert (empty.reason, empty.metadata["verdict"]) == ("EVIDENCE_MISSING", "HOLD")
    assert (missing.reason, missing.metadata["adapter_id"]) == ("EVIDENCE_MISSING", newer)
    assert (await rig.promote()).champion == newer


async def test_of_two_promotions_at_the_same_time_one_wins(
    rig: Rig, empty_redis: RedisProcess, tmp_path: Path, base: BaseModel
) -> None:
    """FAULTS 28, with two registries on one Redis."""
    async with running_registry(empty_redis, tmp_path, base) as other:
        for _ in range(5):
            champion = (await rig.state()).champion
            pair = [await rig.register(), await rig.register()]
            calls = [
                r.promote(a.id, preview_hash=(await r.preview(a.id)).preview_hash, override=True, reason="race",
                          expected_champion=champion)
                for r, a in zip((rig, other), pair, strict=True)
            ]  # fmt: skip
            ended = await asyncio.gather(*map(reason_or_champion, calls))

            winner = (await rig.state()).champion
            assert sorted(ended) == sorted([winner, "CHAMPION_CHANGED"])
            assert (await other.state()).champion == winner


async def test_an_idempotency_key_has_one_effect_also_at_the_same_time(rig: Rig) -> None:
    """FAULTS 27."""
    adapter = await rig.register()
    wish = {"override": True, "reason": "once", "idempotency_key": "k1"}
    answers = await asyncio.gather(*(rig.promote(adapter.id, **wish) for _ in range(6)))
    registered = await asyncio.gather(*(rig.register(seed=50, idempotency_key="k2") for _ in range(4)))

    assert {a.champion for a in answers} == {adapter.id}
    assert {a.etag for a in answers} == {answers[0].etag}
    assert len({a.id for a in registered}) == 1
    assert sum(e.kind == pb.AdapterEvent.PROMOTED for e in await rig.events()) == 1
    assert sum(e.kind == pb.AdapterEvent.REGISTERED for e in await rig.events()) == 2
    reused = await refused(rig.rollback(idempotency_key="k1"))
    assert reused.reason == "IDEMPOTENCY_KEY_REUSED"


async def test_a_write_of_an_older_leader_is_refused(rig: Rig) -> None:
    adapter = await rig.register(fencing_token=7)
    stale = await refused(rig.traffic(adapter.id, 0.1, fencing_token=6))
    unregistered = await refused(rig.register(fencing_token=6))

    assert (stale.reason, stale.metadata["newest_token"]) == ("STALE_FENCING_TOKEN", "7")
    assert unregistered.reason == "STALE_FENCING_TOKEN"
    assert (await rig.traffic(adapter.id, 0.1, fencing_token=8)).challenges[0].traffic == 0.1
    assert (await rig.traffic(adapter.id, 0.05)).challenges[0].traffic == 0.05  # an operator has no token


async def test_watchers_hear_at_once_and_of_every_change_also_by_another_registry(
    rig: Rig, empty_redis: RedisProcess, tmp_path: Path, base: BaseModel
) -> None:
    async with running_registry(empty_redis, tmp_path, base) as other, asyncio.timeout(20):
        watch = rig.stub.WatchState(pb.WatchStateRequest(watcher="router"))
        first = await watch.read()
        champion = await other.champion()
        seen = [first]
        while seen[-1].state.roles[0].champion != champion:
            seen.append(await watch.read())
        watch.cancel()
        late = rig.stub.WatchState(pb.WatchStateRequest(watcher="router"))
        again = await late.read()
        late.cancel()

    assert first.state.roles[0].role == ROLE
    revisions = [s.state.version.revision for s in seen]
    assert revisions == sorted(set(revisions))
    assert again.state == seen[-1].state  # who comes back has missed nothing


class Held:
    """What a reconciler would have found."""

    def __init__(self) -> None:
        self.states: tuple[ReplicaState, ...] = ()

    def replicas(self, role: str) -> tuple[ReplicaState, ...]:
        return self.states


async def test_what_replicas_hold_stands_in_the_state_and_is_pushed(
    empty_redis: RedisProcess, tmp_path: Path, base: BaseModel
) -> None:
    held = Held()
    async with running_registry(empty_redis, tmp_path, base, replicas=held) as rig, asyncio.timeout(10):
        champion = await rig.champion()
        watch = rig.stub.WatchState(pb.WatchStateRequest())
        first = await watch.read()
        held.states = (ReplicaState("127.0.0.1:1", (champion,), True, ""),)
        second = await watch.read()
        watch.cancel()

    assert not first.state.roles[0].replicas
    assert list(second.state.roles[0].replicas[0].adapters) == [champion]
    assert second.state.version.revision > first.state.version.revision
    assert rig.registry.desired(ROLE) == {champion: str(tmp_path / "adapters" / ROLE / "v000001")}


async def test_replicas_are_to_hold_the_newest_version_too_until_it_was_tried_and_put_away(rig: Rig) -> None:
    champion = await rig.champion()
    older, newest = (await rig.register()).id, (await rig.register()).id
    await rig.state()
    fresh = list(rig.registry.desired(ROLE))
    await rig.traffic(newest, 0.1)
    await rig.traffic(older, 0.0, shadow=True)
    await rig.state()
    challenging = list(rig.registry.desired(ROLE))
    await rig.traffic(newest, 0.0)
    await rig.state()

    assert fresh == [champion, newest]
    assert challenging == [champion, newest, older]
    assert list(rig.registry.desired(ROLE)) == [champion, older]


async def test_a_store_that_is_gone_is_told_quickly_and_comes_back(rig: Rig, empty_redis: RedisProcess) -> None:
    champion = await rig.champion()
    empty_redis.kill()
    async with asyncio.timeout(5):
        assert (await refused(rig.rollback())).reason == "STORE_UNAVAILABLE"
        assert (await rig.state()).champion == champion  # what was last known

    empty_redis.start()

    assert (await rig.rollback()).champion == ""


STEPS = st.lists(
    st.tuples(st.sampled_from(["promote", "rollback", "traffic", "shadow", "stop"]), st.integers(0, 3)), max_size=20
)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(STEPS)
async def test_whatever_is_asked_the_state_stays_consistent(
    redis_server: RedisProcess, tmp_path_factory: pytest.TempPathFactory, base: BaseModel, steps: list[tuple[str, int]]
) -> None:
    """Shares sum to one, the champion never challenges, and the history alone tells who is champion."""
    redis_server.client.flushall()
    async with running_registry(redis_server, tmp_path_factory.mktemp("home"), base) as rig:
        ids = [(await rig.register()).id for _ in range(4)]
        calls = {
            "promote": lambda i: rig.promote(i, override=True, reason="x"),
            "rollback": lambda i: rig.rollback(),
            "traffic": lambda i: rig.traffic(i, 0.25),
            "shadow": lambda i: rig.traffic(i, 0, shadow=True),
            "stop": lambda i: rig.traffic(i, 0),
        }
        for kind, which in steps:
            await reason_or_champion(calls[kind](ids[which]))
            state = await rig.state()
            assert 0 <= sum(c.traffic for c in state.challenges) <= 0.5
            assert state.champion not in [c.adapter_id for c in state.challenges]
            moves = [e for e in await rig.events() if e.kind in (pb.AdapterEvent.PROMOTED, pb.AdapterEvent.ROLLED_BACK)]
            assert state.champion == (moves[0].adapter_id if moves else "")
