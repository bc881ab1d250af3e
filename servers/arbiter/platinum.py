"""Puts the platinum side of the Arbiter together: ledger, stream and their loops."""

import time
from dataclasses import dataclass

from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from hivemind.servers.arbiter.bell import Bell
from hivemind.servers.arbiter.folder import LedgerFolder
from hivemind.servers.arbiter.groups_redis import RedisGroups
from hivemind.servers.arbiter.ledger import Ledger
from hivemind.servers.arbiter.platinum_metrics import PlatinumMetrics
from hivemind.servers.arbiter.settings import ArbiterSettings
from hivemind.servers.arbiter.stream import Pace, PlatinumStreams

LAG_EVERY_S = 5.0


@dataclass(frozen=True, slots=True)
class Platinum:
    """The ledger and its stream, as one server has them."""

    ledger: Ledger
    streams: PlatinumStreams

    async def watch_lag(self) -> None:
        """A loop for the server's lifetime."""
        await self.streams.watch_lag(LAG_EVERY_S)


def build_platinum(settings: ArbiterSettings, redis: Redis, registry: CollectorRegistry) -> Platinum:
    """Made with the server; the files are opened by `ledger.follow`."""
    bell, metrics = Bell(), PlatinumMetrics(registry)
    folder = LedgerFolder(
        settings.datasets,
        rotate_bytes=settings.ledger_rotate_bytes,
        clock=time.time,
        on_torn=lambda _: metrics.torn.inc(),
    )
    ledger = Ledger(folder, bell, metrics, poll_s=settings.ledger_poll_s)
    groups = RedisGroups(redis, idle_s=settings.platinum_idle_s, lease_s=settings.platinum_lease_s)
    pace = Pace(settings.platinum_heartbeat_s, settings.platinum_poll_s)
    return Platinum(ledger, PlatinumStreams(ledger, groups, bell, metrics, pace, clock=time.monotonic))
