"""Composition root of the Governor: `python -m hivemind.servers.governor`."""

import asyncio

from prometheus_client import CollectorRegistry

from hivemind.servers.common.errors import MeshError
from hivemind.servers.common.redis_client import redis_client
from hivemind.servers.common.server import Mesh, main
from hivemind.servers.governor.config import Config
from hivemind.servers.governor.feed import ConfigFeed
from hivemind.servers.governor.metrics import GovernorMetrics
from hivemind.servers.governor.service import GovernorService
from hivemind.servers.governor.settings import GovernorSettings
from hivemind.servers.governor.store_redis import RedisStore
from hivemind.v1 import governor_pb2_grpc

BUDGETS_SHOWN_EVERY_S = 5.0


def build(settings: GovernorSettings) -> Mesh:
    """Puts the Governor together."""
    redis = redis_client(settings.redis_url, timeout_s=settings.redis_timeout_s)
    store = RedisStore(redis)
    seed = Config(
        enable_oracle_refinement=settings.enable_oracle_refinement, force_gpt4o_arbiter=settings.force_gpt4o_arbiter
    )
    feed = ConfigFeed(store, seed, poll_s=settings.config_poll_s)
    registry = CollectorRegistry()
    metrics = GovernorMetrics(registry)
    service = GovernorService(feed, store)

    async def show_budgets() -> None:
        while True:
            try:
                if feed.snapshot is not None:
                    metrics.show((await store.budgets(feed.snapshot.config))[1])
            except MeshError:
                pass  # the feed's loop reports a lost store
            await asyncio.sleep(BUDGETS_SHOWN_EVERY_S)

    return Mesh(
        name="governor",
        service="hivemind.v1.GovernorService",
        add=lambda server: governor_pb2_grpc.add_GovernorServiceServicer_to_server(service, server),
        registry=registry,
        run=(feed.run, show_budgets),
        missing=lambda: "" if feed.snapshot is not None else "the store (Redis) has not answered yet",
        on_stop=redis.aclose,
    )


if __name__ == "__main__":
    main(GovernorSettings, "governor", build)
