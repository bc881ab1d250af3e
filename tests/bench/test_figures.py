"""The arithmetic of demo and benchmark."""

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.closed_loop import Moment
from bench.demo import draw, table
from bench.facts import invent
from bench.figures import Answer, Figures, figures_of, is_exact, quantile, ratio
from bench.flywheel import MEDIANS, medians

FACT = invent(random.Random(1), {"towns": 1})[0]


def answer(text: str, model: str, micros: int) -> Answer:
    return Answer(0.0, FACT, text, model, "", micros)


def test_figures_are_dollars_a_thousand_the_couriers_share_and_the_share_of_right_answers() -> None:
    found = figures_of([answer(FACT.answer, "master", 150), answer(f" {FACT.answer}\n", "courier", 2),
                        answer("Nobody knows.", "courier", 2), answer(FACT.value, "courier", 2)])  # fmt: skip

    assert found == Figures(4, pytest.approx(156 / 4 * 1000 / 1e6), 0.75, 0.5)


def test_without_answers_all_figures_are_zero() -> None:
    assert figures_of([]) == Figures(0, 0.0, 0.0, 0.0)
    assert ratio(1.0, 0.0) == 0.0
    assert quantile([], 0.5) == 0.0


def test_only_space_around_an_answer_may_differ() -> None:
    assert is_exact(f"\n {FACT.answer} ", FACT)
    assert not is_exact(FACT.answer.rstrip("."), FACT)
    assert not is_exact(FACT.answer.lower(), FACT)


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0.01, 1))
def test_a_quantile_is_the_least_value_that_so_many_do_not_exceed(values: list[float], share: float) -> None:
    found = quantile(values, share)

    assert found in values
    assert sum(v <= found for v in values) >= share * len(values) - 1e-6
    assert all(sum(v <= other for v in values) < share * len(values) for other in values if other < found)


def test_the_benchmark_reports_the_median_of_each_figure() -> None:
    runs = [dict.fromkeys(MEDIANS, value) for value in (3.0, 1.0, 2.0)]

    assert medians(runs) == dict.fromkeys(MEDIANS, 2.0)


def test_the_table_shows_before_after_and_learning_off() -> None:
    off, on = Figures(200, 0.15, 0.0, 1.0), Figures(200, 0.01, 0.95, 0.99)
    shown = table(off, [], on, before=0.0, exam=0.95).splitlines()

    assert shown[-2] == "| after learning | 0.010 | 95% | 99% | 95% |"
    assert shown[-1] == "| learning off | 0.150 | 0% | 100% | 0% |"


def test_the_chart_is_a_picture(tmp_path: Path) -> None:
    moments = [
        Moment(at, Figures(60, 0.1, share, 1.0), 0.5, champion, 1, 10, {}, {})
        for at, share, champion in ((5.0, 0.0, ""), (10.0, 0.9, "implementer-v000001"))
    ]
    draw(moments, Figures(200, 0.15, 0.0, 1.0), 0.95, tmp_path / "chart.png")

    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")
