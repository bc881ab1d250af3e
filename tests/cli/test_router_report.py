"""hivemind router report: its figures from records as the API gives them."""

import random
from typing import Any

import pytest

from hivemind.cli.router_report import regret, report


def record(
    quality: float, rating: int, *, propensity: float = 1.0, cost: int = 10, master: int = 100
) -> dict[str, Any]:
    decision = {"candidates": [{"quality": quality}], "propensity": propensity}
    return {
        "outcome": "OK", "surface": "OPENAI", "decision": decision, "cost_micros": str(cost),
        "master_cost_micros": str(master), "feedback": [{"rating": rating}] if rating else [],
    }  # fmt: skip


def test_savings_and_reliability_are_those_of_the_records() -> None:
    rows = [record(0.9, 1), record(0.9, 1), record(0.9, -1), record(0.9, 0), record(0.25, -1)]

    found = report(rows)

    assert (found.requests, found.rated, found.spent_micros, found.saved_micros) == (5, 4, 50, 450)
    assert [(b.count, b.good) for b in found.reliability] == [(1, 0.0), (3, pytest.approx(2 / 3))]
    assert found.calibration_error == pytest.approx((0.25 + 3 * (0.9 - 2 / 3)) / 4)


def test_without_ratings_there_is_no_curve_and_no_regret() -> None:
    found = report([record(0.5, 0)])

    assert found.reliability == ()
    assert found.calibration_error is None
    assert found.regret is None


def test_regret_recovers_the_difference_of_two_choices() -> None:
    rng, rate, logged = random.Random(3), 0.1, []
    for _ in range(20_000):
        explored = rng.random() < rate
        reward = float(rng.random() < (0.8 if explored else 0.6))
        logged.append((reward, explored, rate if explored else 1 - rate))

    assert regret(logged) == pytest.approx(0.2, abs=0.03)


def test_what_could_not_be_explored_tells_nothing() -> None:
    assert regret([(1.0, False, 1.0), (0.0, True, 0.1)]) is None
