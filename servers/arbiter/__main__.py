"""Composition root of the arbiter server: `python -m hivemind.servers.arbiter`."""

from prometheus_client import CollectorRegistry

from hivemind.servers.arbiter.platinum import build_platinum
from hivemind.servers.arbiter.service import ArbiterService
from hivemind.servers.arbiter.settings import ArbiterSettings
from hivemind.servers.common.redis_client import redis_client
from hivemind.servers.common.server import Mesh, main
from hivemind.v1 import arbiter_pb2_grpc


class NoQueue:
    """A QueueCounter as long as there is no queue."""

    async def counts(self) -> tuple[int, int]:
        """See ports.QueueCounter."""
        return 0, 0


def build(settings: ArbiterSettings) -> Mesh:
    """Puts the server together."""
    registry = CollectorRegistry()
    redis = redis_client(settings.redis_url, timeout_s=settings.redis_timeout_s)
    platinum = build_platinum(settings, redis, registry)
    service = ArbiterService(platinum.ledger, platinum.streams, NoQueue())  # type: ignore[abstract]  # not built yet

    async def on_stop() -> None:
        await platinum.ledger.close()
        await redis.aclose()

    return Mesh(
        name="arbiter",
        service="hivemind.v1.ArbiterService",
        add=lambda server: arbiter_pb2_grpc.add_ArbiterServiceServicer_to_server(service, server),
        registry=registry,
        run=(platinum.ledger.follow, platinum.watch_lag),
        missing=lambda: platinum.ledger.missing,
        on_begin_drain=platinum.streams.end,
        on_stop=on_stop,
    )


if __name__ == "__main__":
    main(ArbiterSettings, "arbiter", build)
