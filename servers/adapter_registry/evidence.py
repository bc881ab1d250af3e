"""What was seen of adapters in use, as sufficient statistics: counts, sums and a histogram of fixed buckets."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

BUCKETS: Final = 128
GROWTH: Final = 1.1
"""Each bucket of latency is this much wider than the one before; the first begins at a millisecond, the last at 181 s.
"""


def bucket_of(seconds: float) -> int:
    """The bucket of a latency."""
    milliseconds = seconds * 1000
    return 0 if milliseconds <= 1 else min(BUCKETS - 1, int(math.log(milliseconds) / math.log(GROWTH)))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was seen of one answer. `latency_s`: None where it was not measured; `score`: 1, 0.5, 0 or None (not
    judged).

    `unit`: what the split assigned it by; empty where the split did not choose. `rating`: a person's opinion, 1, -1 or
    None.
    """

    request_id: str
    role: str
    adapter_id: str
    latency_s: float | None = None
    cost_micros: int = 0
    failed: bool = False
    compared_with: str = ""
    score: float | None = None
    unit: str = ""
    rating: int | None = None

    @property
    def served(self) -> bool:
        """Whether it tells of an answer, and not only of a judgement or an opinion."""
        return self.latency_s is not None or self.failed or (self.score is None and self.rating is None)


@dataclass(frozen=True, slots=True)
class Arm:
    """Answers of one adapter in one reign: how many, failures, cost, and latencies by bucket."""

    requests: int = 0
    errors: int = 0
    cost_micros: int = 0
    latencies: Mapping[int, int] = field(default_factory=dict)

    @property
    def error_rate(self) -> float:
        """Failures over requests; 0 without requests."""
        return self.errors / self.requests if self.requests else 0.0

    @property
    def timed(self) -> int:
        """Requests whose latency is known."""
        return sum(self.latencies.values())

    def slower_than(self, bucket: int) -> int:
        """Requests in this bucket or a later one."""
        return sum(n for b, n in self.latencies.items() if b >= bucket)

    def quantile_s(self, q: float) -> float:
        """A quantile of latency in seconds, within 5%: the middle of its bucket. 0 without latencies."""
        wanted, seen = q * self.timed, 0
        for bucket in sorted(self.latencies):
            seen += self.latencies[bucket]
            if seen >= wanted:
                return float(GROWTH ** (bucket + 0.5)) / 1000
        return 0.0


@dataclass(frozen=True, slots=True)
class Pairs:
    """Answers of a challenger judged against those of the champion."""

    wins: int = 0
    losses: int = 0
    ties: int = 0

    @property
    def decided(self) -> int:
        """Pairs that one of them won."""
        return self.wins + self.losses

    @property
    def judged(self) -> int:
        """All pairs."""
        return self.decided + self.ties


@dataclass(frozen=True, slots=True)
class Point:
    """The pairs at one moment (Unix seconds)."""

    time: float
    pairs: Pairs


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that is known of a challenger against the champion of a reign. `units`: assigned by the split, by adapter."""

    challenger: Arm = Arm()
    champion: Arm = Arm()
    pairs: Pairs = Pairs()
    units: Mapping[str, int] = field(default_factory=dict)
