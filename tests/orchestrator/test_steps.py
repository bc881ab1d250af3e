"""The steps that act on others: what is nominated, shadowed and promoted, and what is not."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivemind.servers.orchestrator.cognitive_map import CognitiveMap
from hivemind.servers.orchestrator.cycle import Result
from hivemind.servers.orchestrator.domains import Skill
from hivemind.servers.orchestrator.ports import Answered, Money, Policy, Promotion
from hivemind.servers.orchestrator.ramp import SHARES, Ramp
from hivemind.servers.orchestrator.steps import Challengers, Refine
from hivemind.servers.orchestrator.worth import worth_of
from tests.orchestrator.ledgers import opened, store
from tests.orchestrator.rig import ROLE, Rig, ScriptedGovernor, adapter, rig
from tests.support.redis_process import RedisProcess

NAME = "implementer-v000002"
ON = Policy(frozenset({ROLE}), 3600.0, 2)
NOW = 1_000_000.0


@pytest.fixture
async def running(empty_redis: RedisProcess, tmp_path: Path) -> AsyncIterator[Rig]:
    async with rig(empty_redis, tmp_path) as made:
        yield made


def traffic(domain: str, count: int, price: int) -> list[Answered]:
    return [Answered(domain, 0, price) for _ in range(count)]


def refine(running: Rig, money: Money, *, count: int = 4, micros: int = 20_000, able: bool = True) -> Refine:
    return Refine(running.keeper, running.router, ScriptedGovernor(money), count, micros, lambda: able)


def test_worth_is_traffic_times_price_gap_times_doubt() -> None:
    known = CognitiveMap(skills=(Skill("facts", 90, 0.95, 0.9, 0.0), Skill("math", 90, 0.3, 0.2, 0.0)))
    answered = [*traffic("facts", 10, 1000), *traffic("math", 5, 1000), Answered("law", 700, None)]

    found = worth_of([*answered, *traffic("free", 50, 0)], known)

    assert [(w.domain, round(w.total)) for w in found] == [("math", 4000), ("facts", 1000), ("law", 665)]


async def test_answers_of_the_domain_worth_most_are_nominated_under_the_token(running: Rig) -> None:
    running.router.traffic = [*traffic("math", 5, 1000), *traffic("law", 1, 1000)]
    running.router.available = {"math": 3}

    result = await refine(running, Money(True, None)).run(running.lease.token)

    assert result.outcome == "DONE"
    assert result.note.startswith("3 answers of math nominated")
    assert result.cost_micros == 15_000
    ((domain, count, value, token),) = running.router.nominated
    assert (domain, count, token) == ("math", 4, 1)
    assert 0.3 <= value <= 0.8


async def test_where_the_first_domain_has_nothing_new_the_next_is_taken(running: Rig) -> None:
    running.router.traffic = [*traffic("math", 5, 1000), *traffic("law", 1, 1000)]
    running.router.available = {"law": 9}

    result = await refine(running, Money(True, None)).run(running.lease.token)

    assert "law" in result.note


async def test_the_count_is_what_the_budget_reaches_for(running: Rig) -> None:
    files = opened(running.datasets)
    for _ in range(3):
        store(files, "math", 0.2, cost=6_000)
    await running.mapped()
    running.router.traffic, running.router.available = traffic("math", 5, 1000), {"math": 9}

    await refine(running, Money(True, None)).run(running.lease.token)
    await refine(running, Money(True, 13_000)).run(running.lease.token)
    poor = await refine(running, Money(True, 5_000)).run(running.lease.token)

    assert [count for _, count, _, _ in running.router.nominated] == [3, 2]
    assert poor == Result("OUT_OF_BUDGET", "a refinement costs about 6000 micro-USD, more than is left for it")


@pytest.mark.parametrize(
    ("money", "count", "able", "why"),
    [
        (Money(False, None), 4, True, "the Governor"),
        (Money(True, None), 0, True, "switched off"),
        (Money(True, None), 4, False, "neither an oracle nor an arbiter"),
        (Money(True, None), 4, True, "no recent request"),
    ],
)
async def test_nothing_is_nominated_where_nothing_can_be_refined(
    running: Rig, money: Money, count: int, able: bool, why: str
) -> None:
    result = await refine(running, money, count=count, able=able).run(running.lease.token)

    assert result.outcome == "SKIPPED"
    assert why in result.note
    assert running.router.nominated == []


def challengers(running: Rig, policy: Policy = ON, ramp: int = 50) -> Challengers:
    return Challengers(running.registry, policy, Ramp(ramp), now=lambda: NOW)


def judged(running: Rig, verdict: str) -> None:
    running.registry.champion, running.registry.challengers = "implementer-v000001", (NAME,)
    running.registry.previews[NAME] = Promotion(NAME, verdict, "by 300 pairs", "hash", "implementer-v000001")


async def test_a_new_adapter_answers_in_the_background(running: Rig) -> None:
    running.registry.adapters = {NAME: adapter(NAME), "implementer-v000001": adapter("implementer-v000001")}

    result = await challengers(running).run(running.lease.token)

    assert result == Result("DONE", f"{NAME} answers in the background")
    assert running.registry.did == [("shadow", NAME, 1)]


@pytest.mark.parametrize("state", ["SHADOW", "CHAMPION", "RETIRED", "REJECTED", "CHALLENGER"])
async def test_an_adapter_that_was_tried_before_is_left_alone(running: Rig, state: str) -> None:
    running.registry.adapters = {NAME: adapter(NAME, state)}

    assert (await challengers(running).run(running.lease.token)).outcome == "SKIPPED"
    assert running.registry.did == []


async def test_of_two_that_may_be_promoted_the_newer_is(running: Rig) -> None:
    judged(running, "PROMOTE")
    newer = "implementer-v000003"
    running.registry.challengers = (NAME, newer)
    running.registry.previews[newer] = Promotion(newer, "PROMOTE", "by 200 pairs", "hash", "implementer-v000001")

    await challengers(running).run(running.lease.token)

    assert running.registry.did == [("promote", newer, 1)]


async def test_a_challenger_is_promoted_by_its_evidence(running: Rig) -> None:
    judged(running, "PROMOTE")

    result = await challengers(running).run(running.lease.token)

    assert result == Result("DONE", f"{NAME} promoted: by 300 pairs")
    assert running.registry.did == [("promote", NAME, 1)]


@pytest.mark.parametrize("verdict", ["HOLD", "ROLLBACK"])
async def test_a_challenger_without_the_evidence_is_not(running: Rig, verdict: str) -> None:
    judged(running, verdict)

    result = await challengers(running).run(running.lease.token)

    assert result == Result("SKIPPED", f"{NAME}: {verdict}, by 300 pairs")
    assert running.registry.did == []


@pytest.mark.parametrize(
    ("promoted_at", "why"), [([NOW - 60], "60 s ago"), ([NOW - 7200, NOW - 9000], "2 promotions in 24 hours")]
)
async def test_promotions_do_not_come_too_soon(running: Rig, promoted_at: list[float], why: str) -> None:
    judged(running, "PROMOTE")
    running.registry.promoted_at = promoted_at

    result = await challengers(running).run(running.lease.token)

    assert result.outcome == "SKIPPED"
    assert why in result.note
    assert running.registry.did == []


async def test_a_role_without_autopromotion_is_left_to_people(running: Rig) -> None:
    judged(running, "PROMOTE")

    result = await challengers(running, Policy(frozenset(), 0.0, 9)).run(running.lease.token)

    assert "autopromote is off" in result.note
    assert running.registry.did == []


def seen(running: Rig, outcomes: int, *, split_holds: bool = True) -> None:
    running.registry.previews[NAME] = Promotion(
        NAME, "HOLD", "too few pairs", "hash", "implementer-v000001", outcomes, split_holds
    )


async def test_a_challenger_without_a_verdict_gets_more_traffic_step_by_step(running: Rig) -> None:
    judged(running, "HOLD")
    step, given, shares = challengers(running, Policy(frozenset({ROLE}), 0.0, 2)), [], []
    for round_ in range(8):
        seen(running, 50 * round_)
        given.append((await step.run(running.lease.token)).note)
        shares.append(running.registry.shares.get(NAME, 0.0))
        await step.run(running.lease.token)

    assert shares == [0.0, *SHARES, 0.5, 0.5]
    assert given[1] == f"{NAME} gets 1% of the traffic, after 50 outcomes"
    assert given[-1] == f"{NAME}: HOLD, too few pairs"
    assert running.registry.did[0] == ("give 0.01", NAME, 1)


@pytest.mark.parametrize(
    ("outcomes", "split_holds", "changed_at", "ramp"),
    [(49, True, [], 50), (500, False, [], 50), (500, True, [NOW - 60], 50), (500, True, [], 0)],
    ids=["too few outcomes", "traffic is not split as it should be", "too soon", "switched off"],
)
async def test_a_share_stays_where_it_must(
    running: Rig, outcomes: int, split_holds: bool, changed_at: list[float], ramp: int
) -> None:
    judged(running, "HOLD")
    step = challengers(running, ramp=ramp)
    seen(running, 0)
    await step.run(running.lease.token)
    running.registry.changed_at = changed_at
    seen(running, outcomes, split_holds=split_holds)

    assert (await step.run(running.lease.token)).outcome == "SKIPPED"
    assert running.registry.did == []


async def test_all_challengers_together_get_half_at_most(running: Rig) -> None:
    judged(running, "HOLD")
    running.registry.shares = {NAME: 0.25, "implementer-v000003": 0.1}
    step = challengers(running)
    for outcomes in (0, 900):
        seen(running, outcomes)
        await step.run(running.lease.token)

    assert running.registry.did == []


@given(st.lists(st.integers(0, 300), max_size=40), st.integers(1, 100))
def test_a_share_only_grows_by_one_step_and_only_after_its_outcomes(news: list[int], least: int) -> None:
    ramp, share, outcomes, since = Ramp(least), 0.0, 0, 0
    for new in news:
        outcomes += new
        found = ramp.next_share("a", share, outcomes, given=share)
        if found is not None:
            assert found == min(s for s in SHARES if s > share)
            assert outcomes - since >= least
            share, since = found, outcomes
            ramp.next_share("a", share, outcomes, given=share)
        elif outcomes == news[0]:
            since = outcomes
