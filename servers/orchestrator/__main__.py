"""Composition root of the orchestrator server: `python -m hivemind.servers.orchestrator`."""

import os
import socket
import sys
import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress

import structlog
from prometheus_client import CollectorRegistry

from hivemind.servers.common.catalogue import CatalogueError, environment, load_catalogue
from hivemind.servers.common.catalogue_watch import CatalogueWatch
from hivemind.servers.common.channels import peer_channel
from hivemind.servers.common.errors import MeshError
from hivemind.servers.common.redis_client import redis_client
from hivemind.servers.common.server import Mesh, main
from hivemind.servers.orchestrator.feed import MapFeed
from hivemind.servers.orchestrator.governor_client import GovernorClient
from hivemind.servers.orchestrator.learning import OnlineLearner, Train
from hivemind.servers.orchestrator.lease import Lease
from hivemind.servers.orchestrator.ledger import LedgerReader
from hivemind.servers.orchestrator.loop import Loop
from hivemind.servers.orchestrator.map_file import MapFile
from hivemind.servers.orchestrator.map_keeper import MapKeeper
from hivemind.servers.orchestrator.metrics import OrchestratorMetrics
from hivemind.servers.orchestrator.models import Models
from hivemind.servers.orchestrator.neo4j_mirror import Mirroring, Neo4jMirror
from hivemind.servers.orchestrator.ports import Policy
from hivemind.servers.orchestrator.ramp import Ramp
from hivemind.servers.orchestrator.registry_client import RegistryClient
from hivemind.servers.orchestrator.router_client import RouterClient
from hivemind.servers.orchestrator.service import OrchestratorService
from hivemind.servers.orchestrator.settings import OrchestratorSettings
from hivemind.servers.orchestrator.status import Control
from hivemind.servers.orchestrator.steps import (
    Challengers,
    Housekeeping,
    PublishOnline,
    ReadPlatinum,
    Refine,
    UpdateMap,
)
from hivemind.servers.orchestrator.store_redis import RedisStore
from hivemind.servers.orchestrator.trainer_client import START_TIMEOUT_S, TrainerClient
from hivemind.v1 import orchestrator_pb2_grpc

_log = structlog.get_logger()

_DAY_S = 86_400.0


def build(settings: OrchestratorSettings) -> Mesh:
    """Puts the server together. It runs inside the event loop."""
    try:
        catalogue = load_catalogue(settings.config, environment())
    except CatalogueError as error:
        sys.exit(f"orchestrator: {error}")
    key = settings.api_key.get_secret_value() if settings.api_key is not None else None
    half_life_s = settings.map_half_life_days * _DAY_S
    registry = CollectorRegistry()
    metrics = OrchestratorMetrics(registry)
    redis = redis_client(settings.redis_url, timeout_s=settings.redis_timeout_s, connections=16)
    store = RedisStore(redis, kept=settings.cycles_kept, half_life_s=half_life_s)
    name = f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}"
    lease = Lease(
        store, name, ttl_s=settings.lease_ttl_s, renew_s=settings.lease_renew_s, retry_s=settings.lease_retry_s
    )
    addresses = (
        settings.router_address, settings.registry_address, settings.governor_address, settings.trainer_address
    )  # fmt: skip
    channels = [peer_channel(a) for a in addresses]
    router, adapters = RouterClient(channels[0], api_key=key), RegistryClient(channels[1], api_key=key)
    models = Models(catalogue)
    watch = CatalogueWatch(settings.config, poll_s=settings.catalogue_poll_s, on_change=models.replace)
    keeper = MapKeeper(
        LedgerReader(settings.datasets),
        MapFile(settings.home / "runs" / "cognitive_map.json", half_life_s=half_life_s),
        store, router, adapters, learners=models.learners, half_life_s=half_life_s,
    )  # fmt: skip
    policy = Policy(
        frozenset(filter(None, (r.strip() for r in settings.autopromote.split(",")))),
        settings.autopromote_cooldown_s, settings.autopromote_max_per_day,
    )  # fmt: skip
    refine = Refine(
        keeper, router, GovernorClient(channels[2], api_key=key), settings.refine_per_cycle,
        settings.refine_micros_per_cycle, models.can_refine,
    )  # fmt: skip
    trainer = TrainerClient(
        channels[3], api_key=key, max_duration_s=settings.train_max_duration_s,
        max_cost_micros=settings.train_max_cost_micros,
    )  # fmt: skip
    steps = (
        ReadPlatinum(keeper), UpdateMap(keeper), refine, PublishOnline(OnlineLearner(trainer)),
        Train(trainer, keeper, policy, settings.train_every_examples),
        Challengers(adapters, policy, Ramp(settings.ramp_outcomes)), Housekeeping(keeper),
    )  # fmt: skip
    poll_s = settings.orchestrator_poll_s
    loop = Loop(
        lease, store, steps, metrics, every_s=settings.cycle_every_s, step_s=settings.cycle_step_s, poll_s=poll_s,
        longer_s={"train": settings.cycle_step_s + START_TIMEOUT_S},
    )  # fmt: skip
    feed = MapFeed(store, poll_s=poll_s, on_change=metrics.show)
    service = OrchestratorService(Control(lease, store, poll_s=poll_s), store, feed)
    background: list[Callable[[], Awaitable[None]]] = [lease.run, loop.run, feed.run, watch.run]
    mirror = configured_mirror(settings)
    if mirror is not None:
        mirroring = Mirroring(
            mirror, held=lambda: lease.held, found=lambda: feed.found, poll_s=poll_s, retry_s=settings.neo4j_retry_s
        )
        background.append(mirroring.run)

    async def on_drain() -> None:
        with suppress(MeshError):  # it ends by itself
            await lease.release()

    async def on_stop() -> None:
        if mirror is not None:
            await mirror.close()
        for channel in channels:
            await channel.close()
        await redis.aclose()

    return Mesh(
        name="orchestrator",
        service="hivemind.v1.OrchestratorService",
        add=lambda server: orchestrator_pb2_grpc.add_OrchestratorServiceServicer_to_server(service, server),
        registry=registry,
        run=background,
        missing=lambda: "" if feed.found is not None else "the store (Redis) has not answered yet",
        on_drain=on_drain,
        on_stop=on_stop,
    )


def configured_mirror(settings: OrchestratorSettings) -> Neo4jMirror | None:
    """The database that is configured; without its driver the map goes on in its file alone."""
    if not settings.neo4j_url:
        return None
    try:
        return Neo4jMirror(
            settings.neo4j_url, user=settings.neo4j_user, password=settings.neo4j_password.get_secret_value(),
            database=settings.neo4j_database, timeout_s=settings.neo4j_timeout_s,
        )  # fmt: skip
    except ImportError:
        _log.error("neo4j_driver_missing", cure="pip install 'hivemind[neo4j]'", fallback="runs/cognitive_map.json")
        return None


def start(settings: OrchestratorSettings) -> Mesh:
    """Has this process stand back behind those that answer requests, and puts the server together."""
    os.nice(settings.orchestrator_niceness)
    return build(settings)


if __name__ == "__main__":
    main(OrchestratorSettings, "orchestrator", start)
