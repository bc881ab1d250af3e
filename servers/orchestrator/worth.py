"""Where refined examples would save most. Pure.

A domain's worth is its recent traffic times what a request there costs more than it would cost the courier, times how
unsure it is that the courier's own answers are good: 1 - confidence. A domain of which nothing is known is as unsure as
the prior belief says.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from hivemind.servers.orchestrator.cognitive_map import CognitiveMap
from hivemind.servers.orchestrator.domains import DOUBT
from hivemind.servers.orchestrator.ports import Answered


@dataclass(frozen=True, slots=True)
class Worth:
    """A domain. `gap_micros`: the mean price gap of its requests; `doubt` in [0,1]."""

    domain: str
    requests: int
    gap_micros: float
    doubt: float

    @property
    def total(self) -> float:
        """What it is worth, in micro-USD of the traffic that was looked at."""
        return self.requests * self.gap_micros * self.doubt


def worth_of(answered: Sequence[Answered], known: CognitiveMap) -> list[Worth]:
    """All domains that are worth anything, the dearest first. The gap is the price at master where that is known."""
    gaps: defaultdict[str, list[int]] = defaultdict(list)
    for request in answered:
        if request.domain:
            master = request.master_cost_micros
            gaps[request.domain].append(request.cost_micros if master is None else max(master, request.cost_micros))
    found = [_worth(domain, costs, known) for domain, costs in gaps.items()]
    return sorted((w for w in found if w.total > 0), key=lambda w: (-w.total, w.domain))


def _worth(domain: str, costs: Sequence[int], known: CognitiveMap) -> Worth:
    skill = known.skill(domain)
    confidence = DOUBT if skill is None else skill.confidence
    return Worth(domain, len(costs), sum(costs) / len(costs), 1 - confidence)
