"""Whether what was learnt may be published: against the champion, and against what was published last. Pure."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from hivemind.training.online.model import Reading

SCALES: Final = (1.0, 0.75, 0.5, 0.25)
"""How much of the adapter is tried; a smaller part forgets less."""
FEW: Final = 3
"""Fewer held-out examples than this, a tenant's or checked ones, are too noisy to decide anything by."""
_MARGIN: Final = 0.05
_SLACK: Final = 0.05
_CHANCE: Final = 0.15
"""Three answers lost and none won are no chance; two are. Stricter would let harm add up over publications."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """A held-out example as a model read it; `checked`: its answer was (see Lesson)."""

    id: str
    tenant: str
    reading: Reading
    checked: bool


@dataclass(frozen=True, slots=True)
class Measured:
    """How weights read all that the gate looks at. `kl`: nats a token from the champion on plain text."""

    held_out: tuple[HeldOut, ...]
    questions: float
    text: float
    kl: float = 0.0

    @property
    def loss(self) -> float:
        """Held-out loss a token: the mean over tenants of each tenant's mean, so that none outweighs the others."""
        losses = tenant_losses(self.held_out)
        return sum(losses.values()) / len(losses) if losses else 0.0

    @property
    def exact(self) -> int:
        """Held-out answers that are foreseen whole."""
        return sum(h.reading.exact for h in self.held_out)

    @property
    def jury(self) -> "Measured":
        """The same with the held-out examples that have the first word: those that were checked, or all where these are
        fewer than FEW. Anybody may teach wrong answers, and some of these are held out."""
        sits = jury_sits(h.checked for h in self.held_out)
        return replace(self, held_out=tuple(h for h in self.held_out if h.checked)) if sits else self


@dataclass(frozen=True, slots=True)
class GateLimits:
    """Shares of a loss, and nats for `kl`. `gain`: how far the held-out loss must fall to be worth a publication;
    `mastered`: the share of right answers to what is held out from which on more rehearsal is not worth its price."""

    questions: float
    text: float
    tenant: float
    kl: float
    gain: float
    mastered: float


def jury_sits(checked: Iterable[bool]) -> bool:
    """Whether enough of what is held out was checked."""
    return sum(checked) >= FEW


def refusal(candidate: Measured, champion: Measured, limits: GateLimits) -> str:
    """Why a candidate may not be published, in one sentence; empty: it may."""
    found = [
        _over("loss on unrelated questions", candidate.questions, champion.questions, limits.questions),
        _over("loss on plain text", candidate.text, champion.text, limits.text),
    ]
    if candidate.kl > limits.kl:
        found.append(f"it is {candidate.kl:.3g} nats a token from the champion, the limit is {limits.kl:.3g}")
    found.append(is_worse(*decisive(candidate, champion, limits), limits))
    mine, theirs = candidate.jury.exact, champion.jury.exact
    if mine < theirs:
        found.append(f"it answers {mine} held-out questions exactly, the champion {theirs}")
    return "; ".join(filter(None, found))


def decisive(candidate: Measured, before: Measured, limits: GateLimits) -> tuple[Measured, Measured]:
    """What a candidate is compared by: the jury, or all that is held out where the jury sees no difference."""
    mine, theirs = candidate.jury, before.jury
    differs = is_better(mine, theirs, limits) or is_worse(mine, theirs, limits)
    return (mine, theirs) if differs else (candidate, before)


def harmed(candidate: Measured, before: Measured, limits: GateLimits) -> list[str]:
    """The tenants whose held-out examples a candidate reads worse than weights before it did.

    Worse is a loss that rose by more than the limit and _SLACK nats a token, or right answers that became wrong; either
    only where chance hardly explains it, as a few examples read a little differently with every step. Of a tenant with
    fewer than FEW held-out examples nothing is said.
    """
    pairs: dict[str, list[tuple[Reading, Reading]]] = defaultdict(list)
    for mine, theirs in zip(candidate.held_out, before.held_out, strict=True):
        pairs[mine.tenant].append((mine.reading, theirs.reading))
    losses = tenant_losses(candidate.held_out), tenant_losses(before.held_out)
    return sorted(
        tenant
        for tenant, both in pairs.items()
        if len(both) >= FEW
        and (_answers_lost(both) or (_rose(losses[0][tenant], losses[1][tenant], limits) and _clearly(both)))
    )


def is_worse(candidate: Measured, before: Measured, limits: GateLimits) -> str:
    """What got worse, in one sentence; empty: nothing. The mean over tenants is held to the same as a tenant."""
    harm = harmed(candidate, before, limits)
    if harm:
        return f"it reads what is held out of {', '.join(harm)} worse than what was there before"
    both = [(m.reading, t.reading) for m, t in zip(candidate.held_out, before.held_out, strict=True)]
    if _rose(candidate.loss, before.loss, limits) and _clearly(both):
        return f"the held-out loss rose from {before.loss:.3g} to {candidate.loss:.3g}"
    return ""


def _rose(loss: float, before: float, limits: GateLimits) -> bool:
    return loss > before * (1 + limits.tenant) + _SLACK


def _clearly(pairs: Sequence[tuple[Reading, Reading]]) -> bool:
    """Whether surprise rose by more than two standard errors of its mean rise."""
    rises = [mine.surprise - theirs.surprise for mine, theirs in pairs]
    mean = sum(rises) / len(rises)
    error = math.sqrt(sum((r - mean) ** 2 for r in rises) / max(1, len(rises) - 1) / len(rises))
    return mean > 2 * error


def _answers_lost(pairs: Sequence[tuple[Reading, Reading]]) -> bool:
    """Whether right answers became wrong more often than the other way round: a sign test of one side."""
    lost = sum(theirs.exact and not mine.exact for mine, theirs in pairs)
    changed = sum(theirs.exact != mine.exact for mine, theirs in pairs)
    chance = sum(math.comb(changed, k) for k in range(lost, changed + 1)) * math.pow(0.5, changed)
    return chance <= _CHANCE


def is_better(candidate: Measured, before: Measured, limits: GateLimits) -> bool:
    """Whether it is worth a publication: more exact answers, or a held-out loss that has clearly fallen."""
    if not candidate.held_out:
        return False
    if candidate.exact != before.exact:
        return candidate.exact > before.exact
    return candidate.loss < before.loss * (1 - limits.gain)


def score(mine: Reading, theirs: Reading) -> float:
    """How one reading of an example does against another: 1 won, 0 lost, 0.5 a tie. An exact answer wins over one that
    is not; else the loss decides, if it differs by more than a twentieth of a nat a token and of itself."""
    if mine.exact != theirs.exact:
        return float(mine.exact)
    apart = theirs.surprise - mine.surprise
    if mine.exact or abs(apart) <= _MARGIN * max(1.0, theirs.surprise):
        return 0.5
    return float(apart > 0)


def is_mastered(candidate: Measured, limits: GateLimits) -> bool:
    """Whether it answers nearly all that the jury holds, and that is not less than a FEW."""
    held = candidate.jury.held_out
    return len(held) >= FEW and candidate.jury.exact >= limits.mastered * len(held)


def figures(candidate: Measured, champion: Measured, scale: float) -> dict[str, float]:
    """What was measured, by name; what is held out is the jury's."""
    mine, theirs = candidate.jury, champion.jury
    count = max(1, len(mine.held_out))
    return {
        "held_out": float(len(mine.held_out)), "held_out_loss": mine.loss, "champion_held_out_loss": theirs.loss,
        "held_out_exact": mine.exact / count, "champion_held_out_exact": theirs.exact / count,
        "questions_loss": candidate.questions, "champion_questions_loss": champion.questions,
        "text_loss": candidate.text, "champion_text_loss": champion.text,
        "kl": candidate.kl, "scale": scale,
    }  # fmt: skip


def tenant_losses(held_out: Sequence[HeldOut]) -> Mapping[str, float]:
    """The held-out loss a token of each tenant."""
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for held in held_out:
        sums[held.tenant][0] += held.reading.loss
        sums[held.tenant][1] += held.reading.tokens
    return {tenant: loss / max(1.0, tokens) for tenant, (loss, tokens) in sums.items()}


def _over(what: str, mine: float, theirs: float, limit: float) -> str:
    rise = mine / max(1e-9, theirs) - 1
    return f"the {what} rose by {rise:.1%}, the limit is {limit:.1%}" if rise > limit else ""
