"""What feedback teaches: P(good enough) of a model in a domain, corrected tenant by tenant.

Kept is by how much outcomes were better than expected: count and sum of (outcome - estimate), each new opinion taking
1% from the weight of those before, so that about the last hundred count. The correction is that sum over count +
PRIOR, the posterior mean of a normal offset whose prior is worth PRIOR opinions; the order of prompts within a domain
stays. A tenant's opinions move only that tenant's decisions: nobody can spoil another's.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

PRIOR: Final = 60.0
"""Chosen on the training recordings: the smallest that helped in 95% of the draws of bench/routing."""
DECAY: Final = 0.99
_LEAST: Final = 0.01


@dataclass(frozen=True, slots=True)
class Opinions:
    """How many there were, and the sum of outcome minus estimate; both decayed."""

    count: float = 0.0
    surplus: float = 0.0

    def after(self, outcome: float, estimate: float) -> "Opinions":
        """With one more: the outcome, and what had been expected, both in [0,1]."""
        return Opinions(self.count * DECAY + 1, self.surplus * DECAY + outcome - estimate)

    def correct(self, p: float) -> float:
        """An estimate, corrected, in [0.01, 0.99]."""
        return min(1 - _LEAST, max(_LEAST, p + self.surplus / (PRIOR + self.count)))


Key = tuple[str, str, str]
"""tenant, alias, domain"""


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
