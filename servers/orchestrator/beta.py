"""Quantiles of the Beta distribution. Pure.

The distribution function is the regularised incomplete beta function by its continued fraction (NIST Digital Library of
Mathematical Functions, 8.17.22), evaluated by the modified Lentz algorithm (Thompson and Barnett 1986); the quantile is
found by halving.
"""

import math
from typing import Final

_TINY: Final = 1e-300
_CLOSE: Final = 1e-12
_TERMS: Final = 500
_HALVINGS: Final = 50


def distribution(x: float, a: float, b: float) -> float:
    """P(X <= x) for X ~ Beta(a, b), a and b positive, x in [0,1]."""
    if x <= 0.0 or x >= 1.0:
        return float(x >= 1.0)
    if x > (a + 1) / (a + b + 2):  # there the fraction of the mirrored distribution converges faster
        return 1.0 - distribution(1.0 - x, b, a)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    return math.exp(log_front) / a * _fraction(x, a, b)


def quantile(p: float, a: float, b: float) -> float:
    """The x with P(X <= x) = p for X ~ Beta(a, b), to about 1e-15."""
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if distribution(middle, a, b) < p:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _fraction(x: float, a: float, b: float) -> float:
    """1 / (1 + d1 / (1 + d2 / (1 + ...)))."""
    c, d = 1.0, 1.0 / _apart(1.0 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, _TERMS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1.0 / _apart(1.0 + term * d)
            c = _apart(1.0 + term / c)
            value *= c * d
        if abs(c * d - 1.0) < _CLOSE:
            break
    return value


def _apart(value: float) -> float:
    return value if abs(value) > _TINY else _TINY
