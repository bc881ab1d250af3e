"""The engine put together: the front on its port, and the generations behind it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from hivemind.servers.engine.adapter_folder import AdapterFolder
from hivemind.servers.engine.base_model import BaseModel
from hivemind.servers.engine.engine import EngineOptions
from hivemind.servers.engine.front import About, Front
from hivemind.servers.engine.generations import Generations, Limits
from hivemind.servers.engine.metrics import EngineMetrics
from hivemind.servers.engine.rehearsal import Rehearsal
from hivemind.servers.engine.relay import Relay

_GRACE_S = 3.0


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """`generation` is what every generation is started with; its host and port are the front's. Sizes are in bytes,
    times in seconds; `base` is None for a model that takes no adapters."""

    generation: EngineOptions
    base: BaseModel | None
    adapters: Path
    cache: Path
    limits: Limits
    timeout_s: float
    max_body: int


@dataclass(frozen=True, slots=True)
class RunningEngine:
    """An engine that takes connections; whether it can answer yet, `generations.serving` says. `loop` ends by itself
    only by a defect."""

    port: int
    generations: Generations
    loop: "asyncio.Future[None]"


@asynccontextmanager
async def running_engine(options: ServerOptions, metrics: EngineMetrics) -> AsyncIterator[RunningEngine]:
    """Serves for the time of the block. At its end requests have 3 s to end."""
    folder, of_one = AdapterFolder(options.adapters), options.generation
    inner = EngineOptions(of_one.model, "127.0.0.1", 0, of_one.threads, of_one.slots, of_one.context)
    relay = Relay(timeout_s=options.timeout_s)
    rehearsal = Rehearsal(relay, most=of_one.slots)
    generations = Generations(
        inner, options.base, folder, options.cache, options.limits, rehearse=rehearsal.rehearse, metrics=metrics
    )
    about = About(of_one.model.name, of_one.context // of_one.slots, of_one.slots + options.limits.waiting)
    front = Front(generations, folder, relay, rehearsal, about, metrics=metrics, max_body=options.max_body)
    runner = web.AppRunner(front.app, access_log=None, handler_cancellation=True, shutdown_timeout=_GRACE_S)
    await runner.setup()
    site = web.TCPSite(runner, of_one.host, of_one.port, backlog=2048)
    await site.start()
    loop = asyncio.ensure_future(generations.run())
    try:
        yield RunningEngine(runner.addresses[0][1], generations, loop)
    finally:
        await runner.cleanup()
        loop.cancel()
        await asyncio.gather(loop, return_exceptions=True)
        await relay.close()
