"""Who leads: one of many, by a lease that ends by itself. Pure but for the store.

The leader believes in its lease until the time at which it asked for it plus the time to live, by a clock that no
setting of the time moves and that goes on while the process is paused. So it stops before the store gives the lease to
another. Where that is not enough (a write under way when the process was paused), the fencing token decides: whoever
takes a write refuses a token below the newest that it knows.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import structlog

from hivemind.servers.common.errors import MeshError

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Holding:
    """Who leads, as the store says. `token`: the leader's fencing token; `mine`: whether it is the one that asked."""

    leader: str
    token: int
    mine: bool


class LeaseStore(Protocol):
    """Where the lease lies. Its own clock ends it. Methods may raise STORE_UNAVAILABLE or STORE_FULL."""

    async def take(self, name: str, ttl_s: float) -> Holding:
        """Takes the lease if it is free, prolongs it if it is one's own; answers who holds it then."""

    async def release(self, name: str) -> None:
        """Gives the lease up if it is one's own."""


def steady() -> float:
    """Seconds that no setting of the time moves, and that pass while a process is paused or a machine sleeps."""
    boottime = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boottime is None else time.clock_gettime(boottime)


class Lease:
    """One replica's view of the lease. Times in seconds; `clock` must be one like `steady`."""

    def __init__(
        self,
        store: LeaseStore,
        name: str,
        *,
        ttl_s: float,
        renew_s: float,
        retry_s: float,
        clock: Callable[[], float] = steady,
    ) -> None:
        self._store, self.name = store, name
        self._ttl_s, self._renew_s, self._retry_s, self._clock = ttl_s, renew_s, retry_s, clock
        self._token, self._until = 0, float("-inf")
        self._retired = False

    @property
    def held(self) -> int:
        """The fencing token while this replica leads, else 0."""
        return self._token if self._clock() < self._until else 0

    def token(self) -> int:
        """The fencing token for a write; STALE_FENCING_TOKEN if this replica no longer leads."""
        held = self.held
        if not held:
            raise MeshError("STALE_FENCING_TOKEN", f"{self.name} does not lead (any more)")
        return held

    async def beat(self) -> bool:
        """Asks for the lease once; whether this replica leads now. MeshError if the store does not answer."""
        if self._retired:
            return False
        asked = self._clock()
        found = await self._store.take(self.name, self._ttl_s)
        if not found.mine:
            self._lose()
            return False
        if found.token != self._token:
            _log.info("leading", token=found.token, name=self.name)
        self._token, self._until = found.token, asked + self._ttl_s
        return bool(self.held)

    async def run(self) -> None:
        """Keeps or seeks the lease for ever."""
        while True:
            try:
                wait_s = self._renew_s if await self.beat() else self._retry_s
            except MeshError as error:
                wait_s = self._retry_s
                _log.warning("lease_wait", reason=error.reason, leads=bool(self.held))
            await asyncio.sleep(wait_s)

    async def release(self) -> None:
        """Gives the lease up for good, so that another need not wait for its end."""
        self._retired = True
        self._lose()
        await self._store.release(self.name)

    def _lose(self) -> None:
        if self._until != float("-inf"):
            _log.info("no_longer_leading", token=self._token, name=self.name)
        self._until = float("-inf")
