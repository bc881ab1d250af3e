"""Composition root of the arbiter server: `python -m hivemind.servers.arbiter`."""

import sys

from prometheus_client import CollectorRegistry

from hivemind.servers.arbiter.platinum import build_platinum
from hivemind.servers.arbiter.refining import build_refining
from hivemind.servers.arbiter.service import ArbiterService
from hivemind.servers.arbiter.settings import ArbiterSettings
from hivemind.servers.common.catalogue import CatalogueError, environment, load_catalogue
from hivemind.servers.common.redis_client import redis_client
from hivemind.servers.common.server import Mesh, main
from hivemind.v1 import arbiter_pb2_grpc


def build(settings: ArbiterSettings) -> Mesh:
    """Puts the server together. It runs inside the event loop."""
    try:
        catalogue = load_catalogue(settings.config, environment())
    except CatalogueError as error:
        sys.exit(f"arbiter: {error}")
    registry = CollectorRegistry()
    redis = redis_client(settings.redis_url, timeout_s=settings.redis_timeout_s)
    platinum = build_platinum(settings, redis, registry)
    refining = build_refining(settings, catalogue, redis, registry, platinum.ledger)
    service = ArbiterService(
        platinum.ledger,
        platinum.streams,
        refining.queue,
        refining.refinery,
        refining.nominations,
        deadline_s=settings.deadline_s,
    )

    async def on_stop() -> None:
        await refining.close()
        await platinum.ledger.close()
        await redis.aclose()

    return Mesh(
        name="arbiter",
        service="hivemind.v1.ArbiterService",
        add=lambda server: arbiter_pb2_grpc.add_ArbiterServiceServicer_to_server(service, server),
        registry=registry,
        run=(platinum.ledger.follow, platinum.watch_lag, *refining.run),
        missing=lambda: platinum.ledger.missing,
        on_begin_drain=platinum.streams.end,
        on_stop=on_stop,
    )


if __name__ == "__main__":
    main(ArbiterSettings, "arbiter", build)
