"""The sticky split of a role's traffic."""

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivemind.servers.common.assignment import Split, assign

UNITS = 20_000


def counts(split: Split, experiment: str) -> Counter[str]:
    return Counter(assign(split, experiment=experiment, unit=f"session-{i}") for i in range(UNITS))


@pytest.mark.parametrize("share", [0.01, 0.05, 0.1, 0.25, 0.5])
def test_each_gets_its_share_within_the_binomial_interval(share: float) -> None:
    found = counts(Split("implementer", "v1", {"v2": share}), "e")

    width = 4 * math.sqrt(UNITS * share * (1 - share))
    assert abs(found["v2"] - UNITS * share) < width
    assert found["v1"] == UNITS - found["v2"]


def test_two_challengers_get_theirs_beside_the_base_model() -> None:
    found = counts(Split("implementer", "", {"v2": 0.1, "v3": 0.25}), "e")

    for name, share in (("v2", 0.1), ("v3", 0.25), ("", 0.65)):
        assert abs(found[name] - UNITS * share) < 4 * math.sqrt(UNITS * share * (1 - share))


@given(st.text(max_size=40), st.floats(0, 0.5), st.floats(0, 0.5))
def test_a_unit_keeps_its_adapter_and_a_growing_share_takes_nobody_away(unit: str, one: float, other: float) -> None:
    low, high = sorted((one, other))
    small, large = Split("r", "v1", {"v2": low}), Split("r", "v1", {"v2": high})

    first = assign(small, experiment="e", unit=unit)

    assert assign(small, experiment="e", unit=unit) == first
    if first == "v2":
        assert assign(large, experiment="e", unit=unit) == "v2"


def test_another_experiment_and_another_role_shuffle_anew() -> None:
    split = Split("r", "v1", {"v2": 0.5})
    units = [f"u{i}" for i in range(2000)]
    one = [assign(split, experiment="a", unit=u) for u in units]

    for other in (
        [assign(split, experiment="b", unit=u) for u in units],
        [assign(Split("s", "v1", {"v2": 0.5}), experiment="a", unit=u) for u in units],
    ):
        assert 800 < sum(a == b for a, b in zip(one, other, strict=True)) < 1200


def test_without_challengers_all_go_to_the_champion() -> None:
    split = Split("r", "v1", {})

    assert assign(split, experiment=split.experiment, unit="u") == "v1"
    assert Split("r", "", {}).experiment == "base"
