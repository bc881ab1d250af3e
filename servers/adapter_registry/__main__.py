"""Composition root of the adapter registry server: `python -m hivemind.servers.adapter_registry`."""

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path

import structlog
from prometheus_client import CollectorRegistry

from hivemind.servers.adapter_registry.adapter_servers.connect import connect
from hivemind.servers.adapter_registry.autopromote import AutopromotePolicy
from hivemind.servers.adapter_registry.base_model import BaseModel, BaseModels, plain_name, read_gguf
from hivemind.servers.adapter_registry.deployment import AdapterDeploymentManager
from hivemind.servers.adapter_registry.feed import StateFeed
from hivemind.servers.adapter_registry.guard import Guard
from hivemind.servers.adapter_registry.metrics import RegistryMetrics
from hivemind.servers.adapter_registry.reconciler import Reconciler
from hivemind.servers.adapter_registry.registration import Registrar
from hivemind.servers.adapter_registry.registry import Policies, Registry
from hivemind.servers.adapter_registry.service import AdapterRegistryService
from hivemind.servers.adapter_registry.settings import AdapterRegistrySettings
from hivemind.servers.adapter_registry.store_redis import RedisStore
from hivemind.servers.adapter_registry.versions import Versions
from hivemind.servers.common.catalogue import (
    COURIER,
    DEFAULT_ENGINE_URL,
    Catalogue,
    CatalogueError,
    Model,
    environment,
    load_catalogue,
)
from hivemind.servers.common.catalogue_watch import CatalogueWatch
from hivemind.servers.common.courier import Hub, Local, ModelError, Remote, resolve_courier
from hivemind.servers.common.redis_client import redis_client
from hivemind.servers.common.server import Mesh, main
from hivemind.v1 import adapter_registry_pb2_grpc

_log = structlog.get_logger()


def build(settings: AdapterRegistrySettings) -> Mesh:
    """Puts the server together. It runs inside the event loop."""
    redis = redis_client(settings.redis_url, timeout_s=settings.redis_timeout_s)
    catalogue = _catalogue(settings)
    served = _served(catalogue)
    store, versions = RedisStore(redis), Versions(settings.adapters)
    reconciler = Reconciler(
        lambda role: registry.desired(role),
        connect(catalogue),
        clock=time.monotonic,
        on_change=lambda _: feed.look_now(),
    )
    feed = StateFeed(store, reconciler, tuple(served), poll_s=settings.state_poll_s)
    registry = Registry(store, feed, versions, Policies(autopromote=_autopromote(settings)))
    roots = (settings.home, settings.adapters)
    bases = BaseModels(_makers(settings, served))
    registrar = Registrar(store, versions, bases, roots)
    metrics = RegistryMetrics(CollectorRegistry())
    service = AdapterRegistryService(feed, registry, registrar)

    def take(changed: Catalogue) -> None:
        now = _served(changed)
        bases.replace(_makers(settings, now))
        feed.serve(tuple(now))
        reconciler.replace(connect(changed))

    async def reconcile_on_change() -> None:
        async for _ in feed.watch():
            reconciler.wake()

    async def sweep() -> None:
        await asyncio.to_thread(versions.sweep)

    return Mesh(
        name="adapter_registry",
        service="hivemind.v1.AdapterRegistryService",
        add=lambda server: adapter_registry_pb2_grpc.add_AdapterRegistryServiceServicer_to_server(service, server),
        registry=metrics.registry,
        run=(
            feed.run,
            reconciler.run,
            CatalogueWatch(settings.config, poll_s=settings.catalogue_poll_s, on_change=take).run,
            reconcile_on_change,
            sweep,
            AdapterDeploymentManager(registrar, registry, settings.text_adapter_path).run,
            Guard(feed, registry, every_s=settings.guard_every_s).run,
            lambda: metrics.follow(feed),
        ),
        missing=lambda: "" if feed.snapshot is not None else "the store (Redis) has not answered yet",
        on_stop=redis.aclose,
    )


def _catalogue(settings: AdapterRegistrySettings) -> Catalogue:
    """The catalogue; one that is broken leaves the courier alone (the Router reports it)."""
    try:
        return load_catalogue(settings.config, environment())
    except CatalogueError as error:
        _log.warning("config_refused", why=str(error))
        return load_catalogue(Path(os.devnull), environment())


def _served(catalogue: Catalogue) -> dict[str, Model]:
    return {m.role: m for m in catalogue.models.values() if m.role}


def _autopromote(settings: AdapterRegistrySettings) -> AutopromotePolicy:
    roles = frozenset(filter(None, (r.strip() for r in settings.autopromote.split(","))))
    return AutopromotePolicy(roles, settings.autopromote_cooldown_s, settings.autopromote_max_per_day)


def _makers(settings: AdapterRegistrySettings, served: dict[str, Model]) -> dict[str, Callable[[], BaseModel]]:
    """How to look at each role's base model; a role that no alias names is checked against the courier."""
    courier = Model(COURIER, ())
    models = {"": next((m for m in served.values() if m.alias == COURIER), courier), **served}
    return {role: lambda m=model: _base_model(settings, m) for role, model in models.items()}  # type: ignore[misc]


def _base_model(settings: AdapterRegistrySettings, model: Model) -> BaseModel:
    """The embedded courier's weights are looked at; of a model elsewhere only the names are known."""
    names = frozenset(plain_name(e.model) for e in model.endpoints)
    file = _courier_file(settings) if model.alias == COURIER and _is_embedded(model) else None
    if file is None:
        return BaseModel(model.alias, names)
    try:
        return read_gguf(model.alias, file.path, names=names, sha256=file.sha256)
    except (OSError, ValueError) as error:
        _log.warning("base_model_not_readable", path=str(file.path), why=str(error))
        return BaseModel(model.alias, names)


def _is_embedded(model: Model) -> bool:
    """Whether the mesh's own engine serves it, or would."""
    engine = os.environ.get("HIVEMIND_ENGINE_URL") or DEFAULT_ENGINE_URL
    return all(e.base_url == engine.rstrip("/") for e in model.endpoints)


def _courier_file(settings: AdapterRegistrySettings) -> Local | None:
    try:
        where = resolve_courier(settings.courier)
    except ModelError as error:
        _log.warning("courier_weights_missing", why=str(error))
        return None
    if isinstance(where, Hub):
        where = Local(settings.home / "cache" / "models" / where.repository.replace("/", "--") / where.file)
    return None if isinstance(where, Remote) or not where.path.is_file() else where


if __name__ == "__main__":
    main(AdapterRegistrySettings, "adapter_registry", build)
