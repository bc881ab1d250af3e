"""What the evidence says: PROMOTE, HOLD or ROLLBACK, with the numbers behind it. Pure.

Order: is traffic split as it should be (else nothing of it is believed); is a guardrail breached; do judged pairs say
that the challenger is worse, or better. Looking after every outcome is allowed: each test is anytime-valid
(statistics.py).
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Final, Literal

from hivemind.servers.adapter_registry.evidence import Arm, Evidence, Pairs
from hivemind.servers.adapter_registry.statistics import (
    FLAT,
    Prior,
    confidence_sequence,
    log_e_above,
    log_e_split,
    trials_until,
)

Verdict = Literal["PROMOTE", "HOLD", "ROLLBACK"]
_NEEDED_MAX: Final = 1_000_000
_E_MAX: Final = 1e300
_P95_SHARE: Final = 0.05


@dataclass(frozen=True, slots=True)
class Rules:
    """What counts as evidence. `priors`: where improvements worth finding are expected. One half at a 60% win rate with
    the weight of 100 pairs, which of the priors tried finds 60% soonest; the other half anywhere, so that lopsided
    pairs are believed soon. The median number of pairs to promotion at 55%, 60%, 80% and 100% is 1087, 239, 33 and 12;
    with the first half alone it would be 965, 211, 37 and 20.

    `alpha`: the chance at most that an adapter no better is ever promoted, that one no worse is ever rolled back by
    pairs, or by either guardrail. `split_alpha`: of the sample-ratio check. `min_effect`: the win rate must exceed 1/2
    by this much. `error_margin`, `slowdown_buckets`: how much worse than the champion's error rate and p95 is allowed
    (3 buckets: a third). `error_ceiling`: the error rate allowed while the champion has fewer than `baseline` requests.
    """

    alpha: float = 0.01
    split_alpha: float = 0.001
    min_effect: float = 0.03
    priors: tuple[Prior, ...] = (Prior(60, 40), *FLAT)
    error_margin: float = 0.01
    error_ceiling: float = 0.25
    baseline: int = 50
    slowdown_buckets: int = 3

    @property
    def name(self) -> str:
        """Names these rules: any change of a number changes it."""
        return ";".join(f"{k}={v}" for k, v in asdict(self).items())


@dataclass(frozen=True, slots=True)
class Assessment:
    """The verdict and its numbers. E-values as natural logarithms; `needed`: requests still needed, by estimate."""

    verdict: Verdict
    reason: str
    needed: int
    win_rate: float
    lower: float
    upper: float
    log_e_better: float
    log_e_errors: float
    log_e_latency: float
    log_e_split: float


def as_e_value(log_e: float) -> float:
    """The e-value itself, kept within what a double holds."""
    return _E_MAX if log_e > math.log(_E_MAX) else math.exp(log_e)


def assess(evidence: Evidence, shares: Mapping[str, float], rules: Rules) -> Assessment:
    """The verdict on a challenger. `shares`: what the split gives each adapter now."""
    pairs = evidence.pairs
    better = better_than_champion(pairs, rules)
    errors, latency = guardrails(evidence.challenger, evidence.champion, rules)
    split = split_evidence(evidence.units, shares)
    rate, lower, upper = win_rate(pairs)
    needed = 0
    verdict, reason = _decide(evidence, rules, better=better, errors=errors, latency=latency, split=split)
    if verdict == "HOLD":
        needed = _requests_needed(evidence, rules)
        reason = f"{reason}; about {needed} more requests are needed" if needed < _NEEDED_MAX else reason
    return Assessment(verdict, reason, needed, rate, lower, upper, better, errors, latency, split)


def win_rate(pairs: Pairs) -> tuple[float, float, float]:
    """Win rate without ties and its 95% confidence sequence; 0, 0 and 1 without pairs."""
    if not pairs.decided:
        return 0.0, 0.0, 1.0
    return pairs.wins / pairs.decided, *confidence_sequence(pairs.wins, pairs.decided, 0.05)


def better_than_champion(pairs: Pairs, rules: Rules) -> float:
    """Log e-value of "wins more than half of the pairs"."""
    return log_e_above(pairs.wins, pairs.decided, 0.5, rules.priors)


def guardrails(arm: Arm, champion: Arm, rules: Rules) -> tuple[float, float]:
    """Log e-values of "fails too often" and "is too slow", each against the upper bound of what the champion does.

    Errors: H: rate <= champion's + margin, where the champion's is replaced by its upper confidence bound:
    `log_e_above` falls as that rises, so while the bound holds (probability 1 - alpha/4) the value is at most that of
    an e-process for H. Latency: H: p95 <= champion's p95 times 1.1^slowdown_buckets. A threshold that the champion's
    bound shows to be above its p95 is moved by the slowdown; H says that at most 5% are slower. A later threshold
    counts fewer, so again the value is at most that of the e-process at the champion's true p95.
    """
    return _errors(arm, champion, rules), _latency(arm, champion, rules)


def breach(arm: Arm, champion: Arm, rules: Rules) -> str:
    """What of the guardrails is broken, as a sentence; empty: nothing."""
    errors, latency = guardrails(arm, champion, rules)
    limit = -math.log(rules.alpha / 4)
    if errors >= limit:
        return f"fails too often: {arm.error_rate:.1%} of {arm.requests} requests, champion {champion.error_rate:.1%}"
    if latency >= limit:
        return f"is too slow: p95 {arm.quantile_s(0.95):.2f} s, champion {champion.quantile_s(0.95):.2f} s"
    return ""


def split_evidence(units: Mapping[str, int], shares: Mapping[str, float]) -> float:
    """Log e-value of "traffic is not split by these shares"."""
    names = [name for name, share in shares.items() if share > 0]
    counts = [units.get(name, 0) for name in names]
    return log_e_split(counts, [shares[name] for name in names]) if len(names) > 1 and any(counts) else 0.0


def _decide(
    evidence: Evidence, rules: Rules, *, better: float, errors: float, latency: float, split: float
) -> tuple[Verdict, str]:
    limit = -math.log(rules.alpha)
    pairs = evidence.pairs
    if split >= -math.log(rules.split_alpha):
        seen = ", ".join(f"{name or 'base'} {n}" for name, n in sorted(evidence.units.items()))
        return "HOLD", f"traffic is not split as it should be ({seen}), so the evidence is not believed"
    broken = breach(evidence.challenger, evidence.champion, rules)
    if broken:
        return "ROLLBACK", f"it {broken}"
    if log_e_above(pairs.losses, pairs.decided, 0.5, rules.priors) >= limit:
        return "ROLLBACK", f"it lost {pairs.losses} of {pairs.decided} pairs to the champion"
    if better < limit:
        return "HOLD", f"it won {pairs.wins} of {pairs.decided} pairs, too few to call it better"
    if pairs.wins / pairs.decided < 0.5 + rules.min_effect:
        return "HOLD", f"it wins {pairs.wins / pairs.decided:.1%} of the pairs, which is too small an improvement"
    return "PROMOTE", f"it won {pairs.wins} of {pairs.decided} pairs and keeps the guardrails"


def _errors(arm: Arm, champion: Arm, rules: Rules) -> float:
    if champion.requests < rules.baseline:
        allowed = max(rules.error_ceiling, champion.error_rate + rules.error_margin)
    else:
        allowed = confidence_sequence(champion.errors, champion.requests, rules.alpha / 4)[1] + rules.error_margin
    return log_e_above(arm.errors, arm.requests, min(1.0, allowed))


def _latency(arm: Arm, champion: Arm, rules: Rules) -> float:
    for bucket in sorted({b + 1 for b in champion.latencies}):
        slower = champion.slower_than(bucket)
        if slower > _P95_SHARE * champion.timed:
            continue
        if confidence_sequence(slower, champion.timed, rules.alpha / 4)[1] <= _P95_SHARE:
            return log_e_above(arm.slower_than(bucket + rules.slowdown_buckets), arm.timed, _P95_SHARE)
    return 0.0


def _requests_needed(evidence: Evidence, rules: Rules) -> int:
    """Requests until promotion at the win rate seen so far, drawn to 60% as by 20 pairs, if that is an improvement."""
    pairs = evidence.pairs
    rate = (pairs.wins + 12) / (pairs.decided + 20)
    if rate < 0.5 + rules.min_effect:
        return _NEEDED_MAX
    total = trials_until(rate, pairs.decided, 0.5, -math.log(rules.alpha), rules.priors, _NEEDED_MAX)
    decided_share = (pairs.decided + 1) / (pairs.judged + 1)
    judged_share = min(1.0, (pairs.judged + 1) / (evidence.challenger.requests + 1))
    return min(_NEEDED_MAX, math.ceil((total - pairs.decided) / decided_share / judged_share))
