"""Limits on requests per tenant: a token bucket each (Turner 1986), at this replica's share of the rate."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from hivemind.servers.common.errors import MeshError

_TENANTS_MAX: Final = 10_000


@dataclass(frozen=True, slots=True)
class Rate:
    """Requests in a minute over all replicas, and how many may come at once."""

    per_minute: int
    burst: int


@dataclass(slots=True)
class _Bucket:
    tokens: float
    updated: float


class RateLimiter:
    """Buckets of the tenants that have a limit. `clock` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._rates: Mapping[str, Rate] = {}
        self._replicas = 1
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def configure(self, rates: Mapping[str, Rate], *, replicas: int) -> None:
        """Puts new limits in force; buckets keep what they hold."""
        self._rates, self._replicas = rates, max(1, replicas)

    def admit(self, tenant: str) -> None:
        """Takes one request, or raises RATE_LIMITED with the time until the next is allowed."""
        if not self._rates:
            return
        rate = self._rates.get(tenant) or self._rates.get("*")
        if rate is None:
            return
        per_second = rate.per_minute / 60 / self._replicas
        burst = max(1.0, (rate.burst or rate.per_minute / 10) / self._replicas)
        bucket = self._bucket(tenant, burst)
        now = self._clock()
        bucket.tokens = min(burst, bucket.tokens + (now - bucket.updated) * per_second)
        bucket.updated = now
        if bucket.tokens < 1:
            message = f"tenant {tenant} may send {rate.per_minute} requests a minute"
            raise MeshError("RATE_LIMITED", message, retry_after_s=(1 - bucket.tokens) / per_second)
        bucket.tokens -= 1

    def _bucket(self, tenant: str, burst: float) -> _Bucket:
        bucket = self._buckets.get(tenant)
        if bucket is None:
            bucket = self._buckets[tenant] = _Bucket(burst, self._clock())
            if len(self._buckets) > _TENANTS_MAX:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(tenant)
        return bucket
