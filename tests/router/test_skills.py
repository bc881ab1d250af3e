"""What feedback teaches, as a pure function."""

from hypothesis import given
from hypothesis import strategies as st

from hivemind.servers.router.skills import Opinions, Skills


@given(st.floats(0.01, 0.99), st.lists(st.booleans(), max_size=300))
def test_opinions_move_an_estimate_towards_them_and_never_out_of_bounds(p: float, verdicts: list[bool]) -> None:
    opinions = Opinions()
    for good in verdicts:
        opinions = opinions.after(good, p)

    corrected = opinions.correct(p)
    assert 0 < corrected < 1
    if verdicts and all(verdicts):
        assert corrected >= p
    if verdicts and not any(verdicts):
        assert corrected <= p


def test_old_opinions_fade() -> None:
    opinions = Opinions()
    for _ in range(1000):
        opinions = opinions.after(0.0, 0.5)
    for _ in range(200):
        opinions = opinions.after(1.0, 0.5)

    assert opinions.correct(0.5) > 0.7


def test_a_tenants_opinions_move_that_tenant_only() -> None:
    skills = Skills()
    skills.replace({("angry", "courier", "facts"): Opinions(90.0, -72.0)})

    assert skills.of("angry")("courier", "facts", 0.8) < 0.4
    assert skills.of("calm")("courier", "facts", 0.8) == 0.8
    assert skills.of("angry")("courier", "math", 0.8) == 0.8
