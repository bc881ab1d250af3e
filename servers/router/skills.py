"""What feedback and the Judge teach: P(good enough) of a model in a domain, corrected tenant by tenant.

Kept is by how much outcomes were better than expected: count and sum of (outcome - estimate), each new opinion taking
1% from the weight of those before, so that about the last hundred count. The correction is that sum over count +
PRIOR, the posterior mean of a normal offset whose prior is worth PRIOR opinions; the order of prompts within a domain
stays. A tenant's opinions move only that tenant's decisions: nobody can spoil another's.

The Judge compares; it does not know what is good enough. So its outcome is an alias's share of points against the other
aliases of a committee, and what had been expected of that share is 1/2 + (p - mean p of the others) / 2: what comes out
where each is right by itself with its own p, the right one wins, and two that are both right or both wrong tie. One
alias's surplus is another's loss. It weighs VERDICT_WEIGHT of a person's opinion: verdicts are many and can be biased.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Final

from hivemind.servers.router.records import Judged

PRIOR: Final = 60.0
"""Chosen on the training recordings: the smallest that helped in 95% of the draws of bench/routing."""
DECAY: Final = 0.99
VERDICT_WEIGHT: Final = 0.25
_LEAST: Final = 0.01


@dataclass(frozen=True, slots=True)
class Opinions:
    """How many there were, and the sum of outcome minus estimate; both decayed."""

    count: float = 0.0
    surplus: float = 0.0

    def after(self, outcome: float, estimate: float, weight: float = 1.0) -> "Opinions":
        """With one more: the outcome, and what had been expected, both in [0,1]."""
        decay = DECAY**weight
        return Opinions(self.count * decay + weight, self.surplus * decay + weight * (outcome - estimate))

    def correct(self, p: float) -> float:
        """An estimate, corrected, in [0.01, 0.99]."""
        return min(1 - _LEAST, max(_LEAST, p + self.surplus / (PRIOR + self.count)))


Key = tuple[str, str, str]
"""tenant, alias, domain"""


@dataclass(frozen=True, slots=True)
class Lesson:
    """One more opinion of an alias: `surplus` is outcome minus estimate; `weight` 1 is a person's."""

    alias: str
    surplus: float
    weight: float


def lessons_of(judged: Sequence[Judged], expected: Mapping[str, float]) -> tuple[Lesson, ...]:
    """What a committee's verdicts teach of each alias; nothing where only one took part.

    `expected`: P(good enough) by alias, as the decision had it.
    """
    compared = [j for j in judged if j.against_others is not None and j.alias in expected]
    lessons = []
    for alias in dict.fromkeys(j.alias for j in compared):
        others = [expected[j.alias] for j in compared if j.alias != alias]
        if others:
            share = fmean(j.against_others or 0.0 for j in compared if j.alias == alias)
            lessons.append(Lesson(alias, share - 0.5 - (expected[alias] - fmean(others)) / 2, VERDICT_WEIGHT))
    return tuple(lessons)


class Skills:
    """A snapshot of all opinions, replaced whole."""

    def __init__(self) -> None:
        self._opinions: Mapping[Key, Opinions] = {}

    def replace(self, opinions: Mapping[Key, Opinions]) -> None:
        """Puts a new snapshot in force."""
        self._opinions = opinions

    def of(self, tenant: str) -> "TenantSkill":
        """The correction for one tenant's decisions."""
        return TenantSkill(self._opinions, tenant)


@dataclass(frozen=True, slots=True)
class TenantSkill:
    """Implements selector.Skill."""

    opinions: Mapping[Key, Opinions]
    tenant: str

    def __call__(self, alias: str, domain: str, p: float) -> float:
        """P(good enough), corrected by this tenant's opinions of that model in that domain."""
        found = self.opinions.get((self.tenant, alias, domain))
        return p if found is None else found.correct(p)
