"""Outcomes, what they add up to, and what the guard does about it."""

import asyncio
from itertools import pairwise
from pathlib import Path

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hivemind.servers.adapter_registry.autopromote import AutopromotePolicy, refusal
from hivemind.servers.adapter_registry.base_model import BaseModel
from hivemind.servers.adapter_registry.registry import Policies
from hivemind.servers.adapter_registry.roles import Role
from hivemind.servers.adapter_registry.store_redis import WINDOW_S
from hivemind.v1 import adapter_registry_pb2 as pb
from tests.support.redis_process import RedisProcess
from tests.support.registry import ROLE, Rig, refused, running_registry

HOLD, ROLLBACK = pb.PreviewPromotionResponse.HOLD, pb.PreviewPromotionResponse.ROLLBACK


async def test_outcomes_add_up_to_the_evidence_of_both_arms(rig: Rig) -> None:
    champion = await rig.champion()
    challenger = await rig.challenger()
    await rig.serve(champion, 40, failed=1, latency_s=0.5, name="c")
    await rig.serve(challenger, 20, failed=2, latency_s=0.2, name="x")
    await rig.judge(challenger, champion, wins=7, losses=2)
    await rig.record(pb.Outcome(request_id="tie", role=ROLE, adapter_id=challenger, compared_with=champion, score=0.5))

    evidence = (await rig.state()).challenges[0].evidence

    assert (evidence.pairs, evidence.wins, evidence.losses, evidence.ties) == (10, 7, 2, 1)
    assert (evidence.requests, evidence.champion_requests) == (20, 40)
    assert (evidence.error_rate, evidence.champion_error_rate) == (0.1, 0.025)
    assert evidence.latency_p95.ToTimedelta().total_seconds() == pytest.approx(0.2, rel=0.06)
    assert evidence.champion_latency_p95.ToTimedelta().total_seconds() == pytest.approx(0.5, rel=0.06)
    assert evidence.cost_micros == 2000
    assert evidence.win_rate_lower < 7 / 9 < evidence.win_rate_upper


async def test_a_pair_counts_the_same_from_either_side(rig: Rig) -> None:
    champion = await rig.champion()
    challenger = await rig.challenger()
    await rig.judge(challenger, champion, wins=3, losses=1, name="a")
    await rig.judge(champion, challenger, wins=1, losses=3, name="b")

    evidence = (await rig.preview(challenger)).evidence

    assert (evidence.wins, evidence.losses) == (6, 2)


async def test_outcomes_that_come_again_count_once(rig: Rig) -> None:
    challenger = await rig.challenger()
    outcome = pb.Outcome(request_id="r1", role=ROLE, adapter_id=challenger, score=1.0)
    outcome.latency.FromMilliseconds(100)

    first = await rig.record(outcome, outcome)
    again = await rig.record(outcome)
    rig.time[0] += WINDOW_S
    later = await rig.record(outcome)
    keyed = [await rig.record(pb.Outcome(request_id="r2", role=ROLE, adapter_id=challenger), key="k") for _ in range(3)]

    assert [(a.recorded, a.duplicates) for a in (first, again, later)] == [(1, 1), (0, 1), (0, 1)]
    assert [(a.recorded, a.duplicates) for a in keyed] == [(1, 0)] * 3
    evidence = (await rig.preview(challenger)).evidence
    assert (evidence.requests, evidence.wins) == (2, 1)
    other = pb.Outcome(request_id="r3", role=ROLE, adapter_id=challenger)
    assert (await refused(rig.record(other, key="k"))).reason == "IDEMPOTENCY_KEY_REUSED"


async def test_a_judgement_that_comes_after_its_answer_adds_only_the_pair(rig: Rig) -> None:
    challenger = await rig.challenger()
    served = pb.Outcome(request_id="r1", role=ROLE, adapter_id=challenger, cost_micros=7)
    served.latency.FromMilliseconds(100)
    judged = pb.Outcome(request_id="r1", role=ROLE, adapter_id=challenger, score=0.0)

    answers = [await rig.record(o) for o in (served, judged)]

    assert [a.recorded for a in answers] == [1, 1]
    evidence = (await rig.preview(challenger)).evidence
    assert (evidence.requests, evidence.losses, evidence.cost_micros) == (1, 1, 7)


async def test_a_new_champion_begins_with_empty_evidence(rig: Rig) -> None:
    older, newer = await rig.challenger(), await rig.challenger()
    await rig.judge(newer, "", wins=9, losses=1, name="before")
    await rig.promote(older, override=True, reason="a test")
    await rig.judge(newer, "", wins=5, losses=0, name="late")
    await rig.judge(newer, older, wins=1, losses=2, name="after")

    evidence = (await rig.preview(newer)).evidence

    assert (evidence.wins, evidence.losses) == (1, 2)


@pytest.mark.parametrize(
    ("field", "outcome"),
    [
        ("outcomes[1].adapter_id", pb.Outcome(request_id="r", role=ROLE, adapter_id="implementer-v000077")),
        (
            "outcomes[1].compared_with",
            pb.Outcome(request_id="r", role=ROLE, compared_with="implementer-v000077", score=1),
        ),
        ("outcomes[1].score", pb.Outcome(request_id="r", role=ROLE, compared_with="implementer-v000001", score=0.7)),
        ("outcomes[1].compared_with", pb.Outcome(request_id="r", role=ROLE, score=1)),
        ("outcomes[1].cost_micros", pb.Outcome(request_id="r", role=ROLE, cost_micros=-1)),
        ("outcomes[1].role", pb.Outcome(request_id="r", role="No Role")),
    ],
    ids=str,
)
async def test_a_batch_with_a_wrong_outcome_is_refused_whole_and_names_it(
    rig: Rig, field: str, outcome: pb.Outcome
) -> None:
    adapter = await rig.challenger()
    good = pb.Outcome(request_id="good", role=ROLE, adapter_id=adapter)

    assert (await refused(rig.record(good, outcome))).reason == "INVALID_FIELD"
    assert (await rig.preview(adapter)).evidence.requests == 0


async def test_units_are_counted_once_and_a_wrong_split_is_noticed(rig: Rig) -> None:
    challenger = await rig.challenger(0.1)
    for _ in range(3):
        await rig.serve(challenger, 60, name="one-unit-each", unit=True)
    rig.time[0] += 3 * WINDOW_S
    await rig.serve(challenger, 60, name="one-unit-each", unit=True)
    await rig.serve("", 60, name="base", unit=True)
    await rig.judge(challenger, "", wins=180, losses=20)

    preview = await rig.preview(challenger)

    assert preview.evidence.requests == 120
    assert preview.evidence.sample_ratio_e_value > 1000
    assert preview.verdict == HOLD
    assert "implementer-v000001 60" in preview.reason
    await rig.traffic(challenger, 0.5)  # another split begins to count anew
    assert (await rig.preview(challenger)).verdict == pb.PreviewPromotionResponse.PROMOTE


async def test_the_preview_tells_traffic_latency_cost_and_how_the_evidence_grew(rig: Rig) -> None:
    champion = await rig.champion()
    challenger = await rig.challenger()
    await rig.serve(champion, 300, latency_s=0.5, name="c")
    await rig.serve(challenger, 100, latency_s=1.0, name="x")
    for i in range(20):
        await rig.judge(challenger, champion, wins=6, losses=4, name=f"j{i}")
        rig.time[0] += 60

    preview = await rig.preview(challenger)

    assert preview.requests_per_day == pytest.approx(400 * 24 * 3)  # seen in the first 20 minutes of an hour
    assert preview.latency_p95_change_s == pytest.approx(0.5, rel=0.1)
    assert preview.cost_per_1000_change_micros == 0
    pairs = [p.pairs for p in preview.points]
    assert pairs == sorted(set(pairs))
    assert pairs[0] == 1
    assert 15 < len(pairs) < 40
    assert preview.points[-1].e_value > preview.points[3].e_value
    last = preview.points[-1]
    assert last.win_rate_lower < last.win_rate < last.win_rate_upper


async def test_the_chart_of_a_champion_shows_how_it_came_into_office(rig: Rig) -> None:
    challenger = await rig.challenger()
    await rig.judge(challenger, "", wins=160, losses=60)
    await rig.promote()

    preview = await rig.preview(challenger)

    assert preview.verdict == HOLD
    assert "already" in preview.reason
    assert preview.evidence.wins == 160
    assert preview.points[-1].pairs > 150


async def test_a_failing_challenger_loses_its_traffic_within_one_look(rig: Rig) -> None:
    champion = await rig.champion()
    challenger = await rig.challenger(0.25)
    await rig.serve(champion, 200, failed=2, name="c")
    await rig.serve(challenger, 60, failed=30, name="x")
    assert (await rig.preview(challenger)).verdict == ROLLBACK

    await rig.guard.look(ROLE)

    state = await rig.state()
    assert (state.champion, len(state.challenges)) == (champion, 0)
    newest = (await rig.events())[0]
    assert newest.kind == pb.AdapterEvent.REJECTED
    assert "50.0% of 60" in newest.reason
    assert (await rig.stub.GetAdapter(pb.GetAdapterRequest(id=challenger))).state == pb.Adapter.REJECTED


async def test_a_champion_that_breaks_a_guardrail_is_rolled_back_once(rig: Rig) -> None:
    first = await rig.champion()
    await rig.serve(first, 200, failed=2, name="first")
    second = await rig.champion()
    await rig.serve(second, 100, failed=40, name="second")

    task = asyncio.create_task(rig.guard.run())
    watch = rig.stub.WatchState(pb.WatchStateRequest())
    async with asyncio.timeout(10):
        while (await watch.read()).state.roles[0].champion != first:
            pass
    watch.cancel()
    newest = (await rig.events())[0]
    await rig.promote(second, override=True, reason="it was the network")
    await rig.serve(second, 100, failed=40, name="again")
    await rig.guard.look(ROLE)
    task.cancel()

    assert newest.kind == pb.AdapterEvent.ROLLED_BACK
    assert newest.reason.startswith(f"automatic: {second} fails too often")
    assert (await rig.state()).champion == second
    assert sum(e.kind == pb.AdapterEvent.ROLLED_BACK for e in await rig.events()) == 1


async def test_a_slow_champion_is_rolled_back(rig: Rig) -> None:
    first = await rig.champion()
    await rig.serve(first, 600, latency_s=0.2, name="first")
    second = await rig.champion()
    await rig.serve(second, 100, latency_s=0.6, name="second")

    await rig.guard.look(ROLE)

    assert (await rig.state()).champion == first
    assert "too slow" in (await rig.events())[0].reason


async def test_two_guards_do_one_thing(rig: Rig, empty_redis: RedisProcess, tmp_path: Path, base: BaseModel) -> None:
    await rig.champion()
    second = await rig.champion()
    await rig.serve(second, 100, failed=60, name="second")
    async with running_registry(empty_redis, tmp_path, base) as other:
        await asyncio.gather(rig.guard.look(ROLE), other.guard.look(ROLE), return_exceptions=True)

    assert sum(e.kind == pb.AdapterEvent.ROLLED_BACK for e in await rig.events()) == 1


async def test_the_policy_promotes_by_itself_with_evidence_and_after_its_pauses(
    empty_redis: RedisProcess, tmp_path: Path, base: BaseModel
) -> None:
    policy = AutopromotePolicy(frozenset({ROLE}), cooldown_s=3600, max_per_day=2)
    async with running_registry(empty_redis, tmp_path, base, policies=Policies(autopromote=policy)) as rig:
        promoted = []
        for number, hours in enumerate((0, 0.5, 1, 2, 25)):
            rig.time[0] += hours * 3600
            before = await rig.state()
            if not before.challenges:
                challenger = await rig.challenger()
                await rig.guard.look(ROLE)
                assert (await rig.state()).champion == before.champion, "promoted without evidence"
                await rig.judge(challenger, before.champion, wins=160, losses=60, name=f"at-{number}")
            await rig.guard.look(ROLE)
            promoted.append((await rig.state()).champion != before.champion)

    assert promoted == [True, False, True, False, True]


async def test_the_policy_promotes_the_one_that_has_the_evidence_though_a_newer_one_has_none(
    empty_redis: RedisProcess, tmp_path: Path, base: BaseModel
) -> None:
    policy = AutopromotePolicy(frozenset({ROLE}), cooldown_s=0, max_per_day=2)
    async with running_registry(empty_redis, tmp_path, base, policies=Policies(autopromote=policy)) as rig:
        proven = await rig.challenger()
        await rig.judge(proven, "", wins=160, losses=60)
        await rig.challenger()

        await rig.guard.look(ROLE)

        assert (await rig.state()).champion == proven


async def test_without_a_policy_nothing_is_promoted_by_itself(rig: Rig) -> None:
    challenger = await rig.challenger()
    await rig.judge(challenger, "", wins=160, losses=60)

    await rig.guard.look(ROLE)

    assert (await rig.state()).champion == ""


@given(st.lists(st.floats(0, 10 * 86400), max_size=30), st.integers(1, 4), st.floats(0, 86400))
def test_the_policy_never_exceeds_its_maximum_a_day_nor_cuts_its_pause_short(
    pauses: list[float], most: int, cooldown: float
) -> None:
    policy, role, now = AutopromotePolicy(frozenset({"r"}), cooldown, most), Role("r"), 1e9
    done: list[float] = []
    for pause in pauses:
        now += pause
        if not refusal(policy, role, "PROMOTE", now=now):
            done.append(now)
            role = Role("r", promotions=tuple(done))
        assert sum(now - t < 86400 for t in done) <= most

    assert all(b - a >= cooldown or b - a >= 86400 for a, b in pairwise(done))


BATCH = st.lists(st.tuples(st.integers(0, 15), st.sampled_from([None, 0.0, 0.5, 1.0]), st.booleans()), max_size=30)


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(BATCH, max_size=4))
async def test_counts_are_those_of_the_distinct_outcomes_whatever_is_sent_again(
    redis_server: RedisProcess,
    tmp_path_factory: pytest.TempPathFactory,
    base: BaseModel,
    batches: list[list[tuple[int, float | None, bool]]],
) -> None:
    redis_server.client.flushall()
    async with running_registry(redis_server, tmp_path_factory.mktemp("home"), base) as rig:
        adapter = await rig.challenger()
        served: dict[int, bool] = {}
        judged: dict[int, float] = {}
        for batch in batches:
            outcomes = []
            for number, score, failed in batch:
                outcomes.append(pb.Outcome(request_id=f"r{number}", role=ROLE, adapter_id=adapter, failed=failed))
                if score is not None:
                    outcomes[-1].score = score
                    judged.setdefault(number, score)
                if failed or score is None:
                    served.setdefault(number, failed)
            if outcomes:
                await rig.record(*outcomes)
        evidence = (await rig.preview(adapter)).evidence

    assert evidence.requests == len(served)
    assert evidence.error_rate == pytest.approx(sum(served.values()) / len(served) if served else 0)
    assert (evidence.wins, evidence.ties, evidence.losses) == tuple(
        sum(s == wanted for s in judged.values()) for wanted in (1.0, 0.5, 0.0)
    )


async def test_opinions_of_a_challenger_are_paired_with_the_champions_in_their_order(rig: Rig) -> None:
    champion = await rig.champion()
    challenger = await rig.challenger()
    liked = [(champion, -1), (champion, 1), (challenger, 1), (champion, -1), (challenger, -1), (challenger, -1)]
    outcomes = [
        pb.Outcome(request_id=f"r{i}", role=ROLE, adapter_id=name, rating=rating)
        for i, (name, rating) in enumerate(liked)
    ]
    first = await rig.record(*outcomes)
    again = await rig.record(*outcomes)

    evidence = (await rig.state()).challenges[0].evidence
    assert (first.recorded, again.duplicates) == (6, 6)
    assert (evidence.wins, evidence.losses, evidence.ties) == (1, 1, 1)
    assert evidence.requests == 0


async def test_an_opinion_that_is_none_is_refused_with_its_field(rig: Rig) -> None:
    champion = await rig.champion()
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await rig.record(pb.Outcome(request_id="r", role=ROLE, adapter_id=champion, rating=5))

    assert "outcomes[0].rating" in (error.value.details() or "")
