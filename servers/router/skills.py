"""What feedback teaches: P(good enough) of a model in a domain, corrected tenant by tenant.

A Beta posterior whose prior is the gate's own estimate, worth PRIOR opinions; each new opinion takes 1% from the weight
of those before, so that about the last hundred count (exponential forgetting). A tenant's opinions move only that
tenant's decisions: nobody can spoil another's.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

PRIOR: Final = 20.0
DECAY: Final = 0.99


@dataclass(frozen=True, slots=True)
class Opinions:
    """Good and bad ones, decayed."""

    good: float = 0.0
    bad: float = 0.0

    def after(self, *, good: bool) -> "Opinions":
        """With one more."""
        return Opinions(self.good * DECAY + good, self.bad * DECAY + (not good))

    def correct(self, p: float) -> float:
        """The mean of the posterior."""
        return (PRIOR * p + self.good) / (PRIOR + self.good + self.bad)


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
