"""Anytime-valid statistics on counts alone: every function may be asked after every outcome, and as often as one likes.

An e-process for a hypothesis H is a process whose value at any stopping time has expectation at most 1 under H, so that
by Ville's inequality P(it ever reaches 1/alpha) <= alpha (Ville 1939; Ramdas, Gruenwald, Vovk and Shafer,
"Game-theoretic statistics and safe anytime-valid inference", Statistical Science 2023). All values are natural
logarithms.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

_BISECTIONS: Final = 60
_TINY: Final = 1e-12


@dataclass(frozen=True, slots=True)
class Prior:
    """The Beta(a, b) that a mixture weighs the alternatives with."""

    a: float = 1.0
    b: float = 1.0


FLAT: Final = (Prior(),)


def log_bayes_factor(successes: int, trials: int, p0: float, priors: Sequence[Prior] = FLAT) -> float:
    """The beta-binomial mixture e-process for H: P(success) = p0; by several priors the mean of theirs.

    E = B(a + s, b + n - s) / B(a, b) / (p0^s (1 - p0)^(n - s)), with B the beta function: the mixture of all likelihood
    ratios against p0 by a Beta(a, b) prior (Robbins, "Statistical methods related to the law of the iterated
    logarithm", Annals of Mathematical Statistics 1970, section 4; Howard, Ramdas, McAuliffe and Sekhon, "Time-uniform,
    nonparametric, nonasymptotic confidence sequences", Annals of Statistics 2021, section 3.2). The mean of
    e-processes is one, for expectations add up; it is the mixture by the mean of the priors. Infinite where p0 makes
    the data impossible.
    """
    failures = trials - successes
    if (p0 <= 0 and successes) or (p0 >= 1 and failures):
        return math.inf
    mixture = _log_mean([_log_beta(p.a + successes, p.b + failures) - _log_beta(p.a, p.b) for p in priors])
    point = (successes * math.log(p0) if successes else 0.0) + (failures * math.log1p(-p0) if failures else 0.0)
    return mixture - point


def log_e_above(successes: int, trials: int, p0: float, priors: Sequence[Prior] = FLAT) -> float:
    """An e-process for the composite H: P(success) <= p0; large values say that it is above.

    The infimum of `log_bayes_factor` over all p <= p0 (the infimum of e-processes, one for each member of H, is one for
    H: Ramdas et al. 2023, section 5). Whatever the priors, only the likelihood depends on p; it rises up to s/n, so the
    infimum lies at min(p0, s/n). It falls as p0 rises.
    """
    if trials == 0:
        return 0.0
    return log_bayes_factor(successes, trials, min(p0, successes / trials), priors)


def confidence_sequence(successes: int, trials: int, alpha: float) -> tuple[float, float]:
    """Bounds that hold P(success) at all times together with probability 1 - alpha.

    All p whose `log_bayes_factor`, with the flat prior, stays below log(1/alpha) (Robbins 1970; Howard et al. 2021). It
    is convex in p with its minimum at s/n, so the bounds are found by bisection on either side.
    """
    if trials == 0:
        return 0.0, 1.0
    estimate, limit = successes / trials, -math.log(alpha)

    def outside(p: float) -> bool:
        return log_bayes_factor(successes, trials, p) >= limit

    lower = _bisect(0.0, estimate, outside) if successes else 0.0
    upper = _bisect(1.0, estimate, outside) if successes < trials else 1.0
    return lower, upper


def log_e_split(counts: Sequence[int], shares: Sequence[float]) -> float:
    """An e-process for H: units fall into groups by these shares (the sample-ratio check).

    The Dirichlet(1, ..., 1)-multinomial mixture against the point: E = [prod Gamma(1 + n_i)] Gamma(k) / Gamma(k + n) /
    prod shares_i^n_i (Lindon and Malek, "Anytime-valid inference for multinomial count data", NeurIPS 2022, equation
    5). Shares above 0 that sum to 1. For two groups it is `log_bayes_factor` with the flat prior.
    """
    total, groups = sum(counts), len(counts)
    mixture = sum(math.lgamma(1 + n) for n in counts) + math.lgamma(groups) - math.lgamma(groups + total)
    return mixture - sum(n * math.log(share) for n, share in zip(counts, shares, strict=True))


def trials_until(rate: float, trials: int, p0: float, log_limit: float, priors: Sequence[Prior], at_most: int) -> int:
    """How many trials there must be in all until `log_e_above` passes a limit, if successes go on at this rate.

    `at_most` where it would take longer or never comes (rate <= p0). An estimate, no bound.
    """

    def passed(n: int) -> bool:
        return log_e_above(round(rate * n), n, p0, priors) >= log_limit

    low, high = trials, max(1, trials)
    while high < at_most and not passed(high):
        low, high = high, 2 * high
    if high >= at_most:
        return at_most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if passed(middle) else (middle, high)
    return high


def _bisect(outside_end: float, inside_end: float, outside: Callable[[float], bool]) -> float:
    far, near = outside_end, inside_end
    for _ in range(_BISECTIONS):
        middle = (far + near) / 2
        if outside(middle):
            far = middle
        else:
            near = middle
        if abs(far - near) < _TINY:
            break
    return far


def _log_mean(logarithms: Sequence[float]) -> float:
    """The logarithm of the mean of what these are the logarithms of."""
    largest = max(logarithms)
    return largest + math.log(sum(math.exp(x - largest) for x in logarithms) / len(logarithms))


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
