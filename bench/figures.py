"""What a row of answers comes to: price, share of the courier, how many were right. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.facts import Fact


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer to a client. `at`: seconds since the run began; `cost_micros`: what serving it cost."""

    at: float
    fact: Fact
    text: str
    model: str
    adapter: str
    cost_micros: int

    @property
    def right(self) -> bool:
        """Whether it is the right answer to the letter, but for space around it."""
        return is_exact(self.text, self.fact)


@dataclass(frozen=True, slots=True)
class Figures:
    """Of some answers: how many, USD per 1,000 requests, the courier's share and the share of right ones in [0,1]."""

    count: int
    usd_per_1000: float
    courier_share: float
    accuracy: float


def figures_of(answers: Sequence[Answer]) -> Figures:
    """The figures of some answers; all zero without any."""
    count = len(answers)
    if not count:
        return Figures(0, 0.0, 0.0, 0.0)
    micros = sum(a.cost_micros for a in answers)
    return Figures(
        count, micros / count / 1000, sum(a.model == "courier" for a in answers) / count,
        sum(a.right for a in answers) / count,
    )  # fmt: skip


def is_exact(text: str, fact: Fact) -> bool:
    """Exact match after trimming."""
    return text.strip() == fact.answer


def quantile(values: Iterable[float], share: float) -> float:
    """The smallest value that at least this share of all does not exceed; 0 without any."""
    ordered = sorted(values)
    return ordered[max(0, -int(-len(ordered) * share // 1) - 1)] if ordered else 0.0


def ratio(value: float, to: float) -> float:
    """One figure by another; 0 where there is nothing to compare with."""
    return value / to if to else 0.0
