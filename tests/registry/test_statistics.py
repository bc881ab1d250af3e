"""The anytime-valid statistics, against `ville` and by simulation."""

import math
from typing import Any

import numpy as np
import pytest
import ville
from hypothesis import given
from hypothesis import strategies as st

from hivemind.servers.adapter_registry.evidence import BUCKETS, GROWTH, Arm, Evidence, Pairs, bucket_of
from hivemind.servers.adapter_registry.promotion import requests_per_day
from hivemind.servers.adapter_registry.statistics import (
    Prior,
    confidence_sequence,
    log_bayes_factor,
    log_e_above,
    log_e_split,
    trials_until,
)
from hivemind.servers.adapter_registry.verdict import (
    Rules,
    assess,
    better_than_champion,
    breach,
    guardrails,
    split_evidence,
)

RULES = Rules()


def coins(seed: int, rate: float, *shape: int) -> Any:
    return (np.random.default_rng(seed).random(shape) < rate).astype(int)


@pytest.mark.parametrize("prior", [(1.0, 1.0), (60.0, 40.0), (0.5, 2.5)])
@pytest.mark.parametrize(("p0", "rate"), [(0.5, 0.6), (0.05, 0.2), (0.9, 0.5)])
def test_the_mixture_is_that_of_ville_after_every_outcome(prior: tuple[float, float], p0: float, rate: float) -> None:
    seen = coins(1, rate, 300)
    theirs = ville.BernoulliTest(p0, prior=prior).fit(seen).log_e_values_

    sums = np.cumsum(seen)
    ours = [log_bayes_factor(int(s), n, p0, (Prior(*prior),)) for n, s in enumerate(sums, 1)]

    assert ours == pytest.approx(list(theirs), abs=1e-9)


def test_a_mixture_by_two_priors_is_the_mean_of_both() -> None:
    expected = ville.BernoulliTest(0.5, prior=(60.0, 40.0)), ville.BernoulliTest(0.5)
    seen = coins(4, 0.7, 300)
    theirs = np.logaddexp(*(test.fit(seen).log_e_values_ for test in expected)) - math.log(2)

    ours = [log_bayes_factor(int(s), n, 0.5, (Prior(60, 40), Prior())) for n, s in enumerate(np.cumsum(seen), 1)]

    assert ours == pytest.approx(list(theirs), abs=1e-9)


@given(st.integers(0, 400), st.integers(0, 400), st.floats(0.01, 0.99))
def test_the_one_sided_value_is_the_least_over_the_whole_hypothesis(s: int, f: int, p0: float) -> None:
    least = min(log_bayes_factor(s, s + f, p, RULES.priors) for p in np.linspace(0.005, 1, 200) * p0)

    assert log_e_above(s, s + f, p0, RULES.priors) <= least + 1e-9


@pytest.mark.parametrize("rate", [0.02, 0.5, 0.97])
def test_the_bounds_are_those_of_ville(rate: float) -> None:
    seen = coins(2, rate, 200)
    theirs = ville.BernoulliCS(alpha=0.05, intersect=False).fit(seen)

    for n in (1, 7, 50, 200):
        lower, upper = confidence_sequence(int(seen[:n].sum()), n, 0.05)
        assert lower == pytest.approx(float(theirs.lower_[n - 1]), abs=1e-6)
        assert upper == pytest.approx(float(theirs.upper_[n - 1]), abs=1e-6)


def test_the_split_of_two_groups_is_the_bernoulli_mixture_of_ville() -> None:
    seen = coins(3, 0.4, 150)
    theirs = ville.BernoulliTest(0.5).fit(seen).log_e_values_

    ours = log_e_split([int(seen.sum()), int(150 - seen.sum())], [0.5, 0.5])

    assert ours == pytest.approx(float(theirs[-1]), abs=1e-9)


@given(st.integers(0, 400), st.integers(0, 400), st.floats(0.01, 0.98), st.floats(0.001, 0.01))
def test_the_one_sided_value_falls_as_the_hypothesis_widens(s: int, f: int, p0: float, more: float) -> None:
    assert log_e_above(s, s + f, p0 + more) <= log_e_above(s, s + f, p0) + 1e-9


@given(st.integers(0, 300), st.integers(1, 300), st.sampled_from([0.05, 0.25, 0.5]))
def test_one_more_success_never_lowers_the_value_above_the_hypothesis(s: int, f: int, p0: float) -> None:
    """What the latency guardrail rests on: the trials stay, a failure becomes a success."""
    n = s + f
    if s / n >= p0:
        assert log_e_above(s + 1, n, p0) >= log_e_above(s, n, p0) - 1e-9


@given(st.integers(0, 1000), st.integers(0, 1000), st.floats(0.001, 0.5))
def test_bounds_hold_the_estimate_and_lie_in_the_unit_interval(s: int, f: int, alpha: float) -> None:
    lower, upper = confidence_sequence(s, s + f, alpha)

    assert 0 <= lower <= (s / (s + f) if s + f else 0.5) <= upper <= 1


@given(st.integers(0, 30), st.floats(0.02, 0.98))
def test_the_expectation_of_the_mixture_is_one_under_its_hypothesis(n: int, p0: float) -> None:
    """An e-value by definition: the sum over all outcomes of n trials, exactly."""
    total = sum(math.comb(n, s) * p0**s * (1 - p0) ** (n - s) * math.exp(log_bayes_factor(s, n, p0, RULES.priors))
                for s in range(n + 1))  # fmt: skip

    assert total == pytest.approx(1, abs=1e-6)


def promotion_boundary(pairs: int) -> Any:
    """The fewest wins that make the verdict PROMOTE, by number of pairs."""
    wins, found = 0, []
    for n in range(1, pairs + 1):
        wins = max(0, wins - 2)
        while wins <= n and assess(Evidence(pairs=Pairs(wins, n - wins)), {"": 1.0}, RULES).verdict != "PROMOTE":
            wins += 1
        found.append(wins)
    return np.array(found)


@pytest.fixture(scope="module")
def boundary() -> Any:
    return promotion_boundary(2000)


@pytest.mark.parametrize("rate", [0.5, 0.48])
def test_with_a_look_after_every_pair_fewer_than_one_in_a_hundred_no_better_adapters_are_promoted(
    boundary: Any, rate: float
) -> None:
    wins = np.cumsum(coins(11, rate, 10_000, 2000).astype(np.int32), axis=1)

    assert (wins >= boundary).any(axis=1).mean() < 0.01


def promoted_by(boundary: Any, rate: float) -> Any:
    """The chance of a promotion within 1, 2, ... pairs with a look after each, exactly: what is promoted leaves."""
    going, gone, found = np.eye(1, len(boundary) + 2)[0], 0.0, []
    for fewest in boundary:
        going = going * (1 - rate) + np.roll(going, 1) * rate
        gone += going[fewest:].sum()
        going[fewest:] = 0
        found.append(gone)
    return np.array(found)


def test_at_a_win_rate_of_60_percent_four_in_five_are_promoted_within_400_pairs(boundary: Any) -> None:
    assert promoted_by(boundary, 0.6)[399] >= 0.8


@pytest.mark.parametrize(("rate", "pairs"), [(0.55, 1087), (0.6, 239), (0.8, 33), (1.0, 12)])
def test_half_of_those_that_win_so_often_are_promoted_within_the_pairs_that_the_rules_tell(
    boundary: Any, rate: float, pairs: int
) -> None:
    assert int((promoted_by(boundary, rate) >= 0.5).argmax()) + 1 == pairs


@pytest.mark.parametrize(("pairs", "verdict"), [(Pairs(12, 0), "PROMOTE"), (Pairs(0, 12), "ROLLBACK")])
def test_twelve_pairs_that_all_go_one_way_decide(pairs: Pairs, verdict: str) -> None:
    assert assess(Evidence(pairs=pairs), {"": 1.0}, RULES).verdict == verdict
    assert (
        assess(Evidence(pairs=Pairs(pairs.wins * 11 // 12, pairs.losses * 11 // 12)), {"": 1.0}, RULES).verdict
        == "HOLD"
    )


def test_the_value_of_a_pair_over_time_is_the_one_that_decides() -> None:
    pairs = Pairs(31, 12)

    assert better_than_champion(pairs, RULES) == assess(Evidence(pairs=pairs), {"": 1.0}, RULES).log_e_better


def test_other_priors_are_other_rules() -> None:
    assert Rules(priors=(Prior(60, 40),)).name != RULES.name != Rules(priors=(Prior(60, 41), Prior())).name


def test_a_worse_challenger_is_rolled_back_and_an_equal_one_rarely() -> None:
    limit = -math.log(RULES.alpha)

    def rolled_back(seed: int, rate: float) -> float:
        losses = np.cumsum(coins(seed, rate, 1000, 600), axis=1)
        return float(
            np.mean(
                [
                    any(log_e_above(int(run[n - 1]), n, 0.5, RULES.priors) >= limit for n in range(20, 601, 20))
                    for run in losses
                ]
            )
        )

    assert rolled_back(13, 0.5) < 0.01
    assert rolled_back(14, 0.62) > 0.9


def test_guardrails_rarely_break_for_an_equal_challenger_and_do_for_a_failing_one() -> None:
    def broken(seed: int, own: float, champion: float, runs: int) -> float:
        ours, theirs = coins(seed, own, runs, 800), coins(seed + 1, champion, runs, 800)
        return float(np.mean([
            any(breach(Arm(n, int(a[:n].sum())), Arm(n, int(b[:n].sum())), RULES) for n in range(25, 801, 25))
            for a, b in zip(ours, theirs, strict=True)
        ]))  # fmt: skip

    assert broken(20, 0.02, 0.02, 400) < 0.01
    assert broken(30, 0.15, 0.02, 50) > 0.95


def arm_of(latencies: Any) -> Arm:
    buckets, numbers = np.unique([bucket_of(float(x)) for x in latencies], return_counts=True)
    return Arm(len(latencies), 0, 0, {int(b): int(n) for b, n in zip(buckets, numbers, strict=True)})


def test_the_latency_guardrail_breaks_for_one_twice_as_slow_and_not_for_an_equal_one() -> None:
    random = np.random.default_rng(40)

    def broken(factor: float, runs: int) -> float:
        hits = 0
        for _ in range(runs):
            ours, theirs = random.lognormal(-1, 0.4, 1000) * factor, random.lognormal(-1, 0.4, 1000)
            hits += any(breach(arm_of(ours[:n]), arm_of(theirs[:n]), RULES) for n in range(100, 1001, 100))
        return hits / runs

    assert broken(1.0, 60) == 0
    assert broken(2.0, 20) > 0.9


def test_quantiles_of_the_histogram_are_right_within_five_percent() -> None:
    latencies = np.random.default_rng(41).lognormal(-1, 0.8, 50_000)

    found = arm_of(latencies)

    for q in (0.5, 0.95, 0.99):
        assert found.quantile_s(q) == pytest.approx(float(np.quantile(latencies, q)), rel=0.06)


@given(st.floats(0, 1e6, allow_nan=False))
def test_every_latency_has_a_bucket(seconds: float) -> None:
    bucket = bucket_of(seconds)

    assert 0 <= bucket < BUCKETS
    if 0.001 < seconds < 100:
        assert GROWTH ** (bucket - 1e-6) <= seconds * 1000 <= GROWTH ** (bucket + 1 + 1e-6)


def test_a_wrong_split_is_found_and_a_right_one_not() -> None:
    random = np.random.default_rng(50)
    shares = {"a": 0.9, "b": 0.1}
    limit = -math.log(RULES.split_alpha)

    def noticed(rate: float, runs: int) -> float:
        units = np.cumsum(random.random((runs, 3000)) < rate, axis=1)
        looks = range(50, 3001, 50)
        return float(np.mean([any(split_evidence({"a": n - int(u[n - 1]), "b": int(u[n - 1])}, shares) >= limit
                                  for n in looks) for u in units]))  # fmt: skip

    assert noticed(0.1, 500) < 0.005
    assert noticed(0.14, 50) > 0.9


def test_the_requests_still_needed_shrink_to_the_moment_of_promotion() -> None:
    needed = [
        assess(Evidence(pairs=Pairs(int(n * 0.65), n - int(n * 0.65))), {"": 1.0}, RULES).needed
        for n in range(0, 100, 20)
    ]

    assert needed == sorted(needed, reverse=True)
    total = trials_until(0.65, 0, 0.5, -math.log(RULES.alpha), RULES.priors, 10_000)
    assert (
        assess(Evidence(pairs=Pairs(round(total * 0.65), total - round(total * 0.65))), {"": 1.0}, RULES).verdict
        == "PROMOTE"
    )


def test_an_improvement_that_is_certain_and_tiny_is_held() -> None:
    found = assess(Evidence(pairs=Pairs(52_000, 48_000)), {"": 1.0}, RULES)

    assert found.verdict == "HOLD"
    assert "too small" in found.reason


def test_errors_count_against_what_the_champion_does_and_without_it_against_a_ceiling() -> None:
    down = Arm(30, 30)

    assert breach(Arm(30, 20), Arm(), RULES)
    assert not breach(down, down, RULES)  # the engine is down for all
    assert not breach(Arm(30, 4), Arm(), RULES)
    assert guardrails(Arm(), Arm(), RULES) == (0.0, 0.0)


def test_a_wrong_split_holds_whatever_the_pairs_say() -> None:
    evidence = Evidence(pairs=Pairs(500, 10), units={"a": 500, "b": 500})

    found = assess(evidence, {"a": 0.9, "b": 0.1}, RULES)

    assert found.verdict == "HOLD"
    assert "not split" in found.reason


@pytest.mark.parametrize(
    ("hours", "minutes", "per_day"),
    [([], 30, 0), ([0, 0], 5, 0), ([10], 30, 480), ([5, 10, 10], 30, 240), ([0, *[100] * 23], 0, 2400)],
)
def test_requests_a_day_are_scaled_up_from_what_was_seen(hours: list[int], minutes: float, per_day: float) -> None:
    assert requests_per_day(hours, minutes) == pytest.approx(per_day, rel=0.05)
