"""The belief in a domain, and the bound that is its confidence."""

import math
import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hivemind.servers.orchestrator.beta import distribution, quantile
from hivemind.servers.orchestrator.domains import (
    BELIEFS_MAX,
    Belief,
    Champion,
    Evidence,
    Skill,
    Tally,
    skill_of,
    skills_of,
)

HALF_LIFE_S = 100.0
BASE = frozenset({""})


def tally(*pieces: Evidence) -> Tally:
    made = Tally(HALF_LIFE_S)
    for piece in pieces:
        made.add(piece)
    return made


def only(*tallies: Tally, champions: Sequence[Champion] = (), serving: frozenset[str] = BASE) -> Skill:
    (skill,) = skills_of(tallies, champions, serving)
    return skill


@given(st.floats(0.001, 0.999), st.integers(1, 80), st.integers(1, 80))
@settings(max_examples=100, deadline=None)
def test_the_beta_distribution_is_the_tail_of_a_binomial_one(x: float, a: int, b: int) -> None:
    """For integers: the a-th smallest of a + b - 1 uniform values is at most x if at least a of them are."""
    n = a + b - 1
    tail = math.fsum(math.comb(n, k) * x**k * (1 - x) ** (n - k) for k in range(a, n + 1))

    assert distribution(x, a, b) == pytest.approx(tail, abs=1e-9)


@given(st.floats(0.001, 0.999), st.floats(1, 500), st.floats(1, 500))
@settings(max_examples=60, deadline=None)
def test_the_quantile_inverts_the_distribution(p: float, a: float, b: float) -> None:
    assert distribution(quantile(p, a, b), a, b) == pytest.approx(p, abs=1e-6)


def test_known_quantiles() -> None:
    assert quantile(0.05, 1, 1) == pytest.approx(0.05, abs=1e-9)
    assert quantile(0.5, 30, 30) == pytest.approx(0.5, abs=1e-9)
    assert quantile(0.05, 1, 20) == pytest.approx(1 - 0.95 ** (1 / 20), abs=1e-9)  # Beta(1,b): 1-(1-x)^b


def test_more_of_the_same_evidence_makes_more_confident() -> None:
    few = only(tally(*(Evidence("math", "", 0.9, 0.0) for _ in range(5))))
    many = only(tally(*(Evidence("math", "", 0.9, 0.0) for _ in range(50))))

    assert few.confidence < many.confidence < many.mean < 0.9
    assert (few.n, many.n) == (pytest.approx(5), pytest.approx(50))


def test_evidence_halves_with_every_half_life_of_newer_evidence() -> None:
    skill = only(tally(Evidence("math", "", 1.0, 0.0), Evidence("math", "", 0.0, HALF_LIFE_S)))

    assert skill.n == pytest.approx(1.5)
    assert skill.mean == pytest.approx((1 + 0.5) / (2 + 1.5))


def test_evidence_of_one_domain_ages_those_without_any() -> None:
    found = skills_of([tally(Evidence("math", "", 1.0, 0.0), Evidence("law", "", 1.0, 2 * HALF_LIFE_S))], (), BASE)

    assert {s.name: s.n for s in found} == {"math": pytest.approx(0.25), "law": pytest.approx(1.0)}


def test_a_new_champion_makes_older_counts_weigh_a_tenth_and_its_held_out_score_counts() -> None:
    counted = tally(*(Evidence("math", "", 0.0, 0.0) for _ in range(20)))
    champion = Champion("implementer-v000001", 0.0, 0.9, ("math",))

    before = only(counted)
    after = only(counted, champions=[champion], serving=frozenset({champion.adapter}))

    assert before.n == pytest.approx(20)
    assert after.n == pytest.approx(2 + 10)
    assert before.confidence < 0.05
    assert after.mean == pytest.approx((1 + 9) / (2 + 12))
    assert after.improved_by == ("implementer-v000001",)


def test_a_champion_that_was_rolled_back_no_longer_counts() -> None:
    champion = Champion("implementer-v000001", 0.0, 1.0, ("math",))
    counted = tally(Evidence("math", "", 0.5, 0.0), Evidence("math", champion.adapter, 0.1, 0.0))

    assert only(counted, champions=[champion]).n == pytest.approx(1.1)


def test_one_tenant_is_heard_less_the_more_it_says() -> None:
    counted = Tally(HALF_LIFE_S)
    for _ in range(1000):
        counted.add_voice(Evidence("math", "", 0.0, 0.0), "flood")
    for i in range(10):
        counted.add_voice(Evidence("math", "", 1.0, 0.0), f"tenant-{i}")

    skill = only(counted)

    assert skill.n == pytest.approx(10 + sum(1 / k for k in range(1, 1001)))
    assert skill.mean > 0.5


pieces = st.lists(
    st.builds(
        Evidence, st.sampled_from(["math", "law"]), st.sampled_from(["", "a-v000001"]), st.floats(0, 1),
        st.floats(0, 1000),
    ),
    min_size=1,
    max_size=30,
)  # fmt: skip


@given(pieces, st.randoms(use_true_random=False))
@settings(max_examples=80, deadline=None)
def test_the_order_of_evidence_does_not_matter(found: list[Evidence], rng: random.Random) -> None:
    mixed = list(found)
    rng.shuffle(mixed)

    one, other = (skills_of([tally(*order)], (), BASE) for order in (found, mixed))

    assert [s.name for s in one] == [s.name for s in other]
    for a, b in zip(one, other, strict=True):
        assert (a.n, a.mean, a.confidence) == pytest.approx((b.n, b.mean, b.confidence), abs=1e-9)


@given(pieces)
@settings(max_examples=40, deadline=None)
def test_a_tally_survives_its_json(found: list[Evidence]) -> None:
    made = tally(*found)
    made.add_voice(found[0], "t1")

    again = Tally.from_json(made.to_json(), HALF_LIFE_S)

    assert (again.beliefs, again.voices) == (made.beliefs, made.voices)


def test_what_has_faded_is_dropped() -> None:
    made = tally(Evidence("old", "", 1.0, 0.0), Evidence("new", "", 1.0, 20 * HALF_LIFE_S))

    assert made.forget_faded() == 1
    assert {domain for domain, _ in made.beliefs} == {"new"}


def test_a_client_that_invents_domains_does_not_fill_the_memory() -> None:
    made = tally(Evidence("math", "", 1.0, 0.0))
    for i in range(2 * BELIEFS_MAX):
        made.add_voice(Evidence(f"invented-{i}", "", 1.0, 0.0), "flood")
    made.add(Evidence("math", "", 1.0, 0.0))

    assert len(made.beliefs) == BELIEFS_MAX
    assert len(made.voices) <= BELIEFS_MAX
    assert made.beliefs["math", ""].good == pytest.approx(2)


def test_of_too_many_domains_those_with_most_evidence_stay() -> None:
    made = tally(*(Evidence(f"d{i:03}", "", 1.0, 0.0) for i in range(250)), Evidence("d249", "", 1.0, 0.0))

    found = skills_of([made], (), BASE)

    assert len(found) == 200
    assert "d249" in {s.name for s in found}


def test_nothing_known_is_the_prior() -> None:
    skill = skill_of("math", Belief(), 0.0)

    assert (skill.n, skill.mean, skill.confidence) == (0.0, 0.5, pytest.approx(0.05))
