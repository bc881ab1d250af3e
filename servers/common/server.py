"""Starts a server, keeps it, and drains it: the same for all six."""

import asyncio
import gc
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TypeVar

import grpc
import structlog
import uvloop
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry
from pydantic import ValidationError

from hivemind.servers.common.interceptors import CallPolicy, MeshInterceptor
from hivemind.servers.common.logs import configure_logs
from hivemind.servers.common.metrics import RpcMetrics
from hivemind.servers.common.metrics_http import MetricsHttp
from hivemind.servers.common.settings import ServerSettings
from hivemind.servers.common.tasks import end_tasks
from hivemind.v1 import adapter_registry_pb2, arbiter_pb2, governor_pb2, orchestrator_pb2, router_pb2, trainer_pb2

_log = structlog.get_logger()

_YOUNG_OBJECTS = 20_000

S = TypeVar("S", bound=ServerSettings)

CONTRACT = tuple(
    service.full_name
    for module in (router_pb2, arbiter_pb2, adapter_registry_pb2, governor_pb2, trainer_pb2, orchestrator_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
)
"""Every service of the contract. Through Envoy reflection reaches one server, so each knows and lists them all."""

_OPTIONS = (
    ("grpc.so_reuseport", 0),
    ("grpc.keepalive_time_ms", 5000),
    ("grpc.keepalive_timeout_ms", 2000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 1000),
)


def _nothing_missing() -> str:
    return ""


@dataclass(slots=True)
class Mesh:
    """What a composition root builds: the servicer and how it begins and ends.

    `run` callables are background loops, started in order before the server takes calls and cancelled after it has
    drained.
    `missing` names in one sentence what the server still waits for before it is ready; empty: nothing.
    `on_begin_drain` is called when readiness goes off, `on_drain` before the gRPC server stops, `on_stop` at the end.
    """

    name: str
    service: str
    add: Callable[[grpc.aio.Server], None]
    registry: CollectorRegistry
    run: Sequence[Callable[[], Awaitable[None]]] = ()
    missing: Callable[[], str] = _nothing_missing
    on_begin_drain: Callable[[], None] | None = None
    on_drain: Callable[[], Awaitable[None]] | None = None
    on_stop: Callable[[], Awaitable[None]] | None = None
    tasks: list[asyncio.Task[None]] = field(default_factory=list)


class MeshServer:
    """One running server. `start`, then `wait` for a signal, then `drain`; ports are real after `start`."""

    def __init__(self, settings: ServerSettings, mesh: Mesh) -> None:
        self._settings, self._mesh = settings, mesh
        self._draining = False
        self._health = health_aio.HealthServicer()
        self._interceptor = MeshInterceptor(_policy(settings), RpcMetrics(mesh.registry))
        self._server = grpc.aio.server(
            interceptors=[self._interceptor],
            options=(*_OPTIONS, ("grpc.max_receive_message_length", settings.max_body + 65536)),
        )
        self._metrics = MetricsHttp(
            host=settings.host, port=settings.metrics_port, registry=mesh.registry, ready=self._ready
        )
        self.grpc_port = settings.grpc_port
        self.metrics_port = settings.metrics_port

    async def start(self) -> None:
        """Binds the ports and starts the background loops; OSError or RuntimeError if a port is taken."""
        mesh = self._mesh
        mesh.add(self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (*CONTRACT, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        self.grpc_port = self._server.add_insecure_port(f"{self._settings.host}:{self._settings.grpc_port}")
        await self._metrics.start()
        self.metrics_port = self._metrics.port
        mesh.tasks.extend(asyncio.create_task(_guarded(loop)) for loop in mesh.run)
        await self._server.start()
        for service in ("", mesh.service):
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)
        _log.info("serving", grpc_port=self.grpc_port, metrics_port=self.metrics_port)

    async def wait(self) -> bool:
        """Waits for SIGTERM (answers True: drain gently) or SIGINT (False: at once)."""
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        gently: list[bool] = []

        def on_signal(gentle: bool) -> None:
            gently.append(gentle)
            ended.set()

        loop.add_signal_handler(signal.SIGTERM, on_signal, True)
        loop.add_signal_handler(signal.SIGINT, on_signal, False)
        await ended.wait()
        return gently[0]

    async def drain(self, *, gently: bool) -> None:
        """Readiness off, the time for Envoy to see it, calls under way to their end, then the loops and clients."""
        _log.info("draining", gently=gently)
        self._draining = True
        if self._mesh.on_begin_drain is not None:
            self._mesh.on_begin_drain()
        self._interceptor.end_watches()
        await self._health.enter_graceful_shutdown()
        if gently:
            await asyncio.sleep(self._settings.drain_delay_s)
        grace = self._settings.drain_grace_s if gently else 1.0
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._metrics.stop)
            if self._mesh.on_stop is not None:
                stack.push_async_callback(self._mesh.on_stop)
            stack.push_async_callback(self._stop_loops)
            stack.push_async_callback(self._server.stop, grace)
            if self._mesh.on_drain is not None:
                stack.push_async_callback(self._mesh.on_drain)
        _log.info("stopped")

    async def _stop_loops(self) -> None:
        await end_tasks(*self._mesh.tasks)

    def _ready(self) -> tuple[bool, str]:
        if self._draining:
            return False, "the server is draining"
        missing = self._mesh.missing()
        return (not missing), missing or "ready"


async def _guarded(loop: Callable[[], Awaitable[None]]) -> None:
    """A background loop that ends by an error is a defect; it is logged, and the server goes on."""
    try:
        await loop()
    except asyncio.CancelledError:
        raise
    except Exception:
        _log.exception("background_loop_ended", loop=getattr(loop, "__qualname__", str(loop)))


def _policy(settings: ServerSettings) -> CallPolicy:
    key = settings.api_key.get_secret_value() if settings.api_key is not None else None
    return CallPolicy(api_key=key, deadline_s=settings.deadline_s, max_in_flight=settings.max_in_flight)


async def serve(settings: ServerSettings, mesh: Mesh) -> None:
    """Runs a server until it is told to end."""
    server = MeshServer(settings, mesh)
    await server.start()
    gently = await server.wait()
    await server.drain(gently=gently)


def _settle_memory() -> None:
    """What start-up made lives for ever: the garbage collector need not look at it again, at the rest less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, 20, 20)


def main(settings_class: type[S], name: str, build: Callable[[S], Mesh]) -> None:
    """The whole of a server's `__main__`: settings, logs, event loop, composition root, serve."""
    try:
        settings = settings_class()
        configure_logs(name, settings.log_level)
    except (ValidationError, KeyError) as error:
        sys.exit(f"{name}: a setting is wrong: {error}")

    async def run() -> None:
        mesh = build(settings)
        _settle_memory()
        await serve(settings, mesh)

    uvloop.run(run())
