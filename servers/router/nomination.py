"""Which answers the Arbiter is asked to refine, why, and how much is expected to be learnt from each. Pure."""

import random
from dataclasses import dataclass
from typing import Final

from hivemind.servers.router.records import Record

UNSURE_BELOW: Final = 0.5
"""Expected quality of an answer below which it is nominated."""
AGREED_FROM: Final = 0.75
"""Share of a strategy's answers that agree, from which nothing is nominated for disagreement."""
SAMPLE_VALUE: Final = 0.2
EXPLORED_VALUE: Final = 0.4
REJECTED_VALUE: Final = 0.9


@dataclass(frozen=True, slots=True)
class Nomination:
    """`cause` is one of arbiter.proto's RefinementCandidate.Cause; `value` in [0,1], what is expected to be learnt."""

    request_id: str
    cause: str
    value: float
    demonstration: str = ""


@dataclass(frozen=True, slots=True)
class Nominator:
    """`sample`: the share of all other answers that is nominated at random."""

    sample: float
    rng: random.Random

    def judge(self, record: Record, agreement: float | None) -> Nomination | None:
        """The nomination of an answer, None for most. `agreement`: the share of a strategy's answers that agreed."""
        if agreement is not None and agreement < AGREED_FROM:
            return Nomination(record.request_id, "DISAGREEMENT", 1 - agreement)
        quality = next((c.quality for c in record.candidates if not c.rejected_because), None)
        if quality is not None and quality < UNSURE_BELOW:
            return Nomination(record.request_id, "LOW_CONFIDENCE", 1 - quality)
        if record.propensity < UNSURE_BELOW:
            return Nomination(record.request_id, "SAMPLE", EXPLORED_VALUE)
        if self.rng.random() < self.sample:
            return Nomination(record.request_id, "SAMPLE", SAMPLE_VALUE)
        return None


def after_feedback(request_id: str, kind: str, value: int | str) -> Nomination | None:
    """The nomination that an opinion brings: a bad rating, or the right answer itself."""
    if kind == "rating" and value == -1:
        return Nomination(request_id, "NEGATIVE_FEEDBACK", REJECTED_VALUE)
    if kind == "demonstration":
        return Nomination(request_id, "DEMONSTRATION", 1.0, str(value))
    return None
