"""What the Orchestrator's cognitive map says of each domain, and how far that moves a decision. Pure.

A skill moves the estimate of the small models in log-odds, by SLOPE * (confidence - NEUTRAL). A confidence above
NEUTRAL is a lower bound that took its evidence to reach, and counts in full. One below may be low for want of evidence
alone, so it counts the more the more there is: n / (n + HALF). A domain that the map has barely seen moves next to
nothing; without a map nothing is moved.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

LOW: Final = 0.4
HIGH: Final = 0.7
"""Confidence below and above which a decision says that the domain is a weak or a strong one."""
LEAST: Final = 5.0
"""Evidence below which nothing is said of a domain."""
_NEUTRAL: Final = 0.55
_SLOPE: Final = 4.0
_HALF: Final = 10.0


@dataclass(frozen=True, slots=True)
class KnownDomain:
    """How good the mesh's own drafts are in a domain: `confidence`, a lower bound in [0,1]; `n` pieces of evidence."""

    confidence: float
    n: float

    @property
    def shift(self) -> float:
        """By how much the log-odds of a small model's answer being good enough move."""
        apart = self.confidence - _NEUTRAL
        return _SLOPE * apart * (1.0 if apart > 0 else self.n / (self.n + _HALF))

    @property
    def weak(self) -> bool:
        """Whether several calls are worth thinking about, whatever dial and difficulty say."""
        return self.n >= LEAST and self.confidence < LOW

    @property
    def said(self) -> str:
        """What a reason says of it; empty where it says nothing."""
        if self.n < LEAST or LOW <= self.confidence <= HIGH:
            return ""
        word = "weak" if self.confidence < LOW else "strong"
        return f" (the mesh is {word} there: confidence {self.confidence:.2f})"


class DomainBook:
    """The map, replaced whole."""

    def __init__(self) -> None:
        self._domains: Mapping[str, KnownDomain] = {}

    def replace(self, domains: Mapping[str, KnownDomain]) -> None:
        """Puts a new map in force."""
        self._domains = domains

    def of(self, domain: str) -> KnownDomain | None:
        """What is known of a domain."""
        return self._domains.get(domain)
