"""Composition root of the embedded engine: `python -m hivemind.servers.engine`."""

import asyncio
import signal
import sys

import structlog
import uvloop

from hivemind.servers.common.courier import ModelError, Remote, checked_file, resolve_courier
from hivemind.servers.common.logs import configure_logs
from hivemind.servers.common.metrics_http import MetricsHttp
from hivemind.servers.engine.base_model import BaseModelError, read_base_model
from hivemind.servers.engine.engine import EngineOptions
from hivemind.servers.engine.generations import Limits
from hivemind.servers.engine.metrics import EngineMetrics
from hivemind.servers.engine.server import ServerOptions, running_engine
from hivemind.servers.engine.settings import EngineSettings

_log = structlog.get_logger()


def build(settings: EngineSettings) -> ServerOptions:
    """What to serve and how; ModelError if there is nothing to."""
    where = resolve_courier(settings.courier)
    if isinstance(where, Remote):
        raise ModelError("HIVEMIND_COURIER names a server, so no engine is needed; unset it to serve a model here")
    model = checked_file(where, settings.home / "cache")
    try:
        base = read_base_model(model)
    except BaseModelError as error:
        _log.warning("no_adapters", reason=str(error))
        base = None
    return ServerOptions(
        generation=EngineOptions(
            model=model,
            host=settings.host,
            port=settings.http_port,
            threads=settings.engine_threads,
            slots=settings.engine_slots,
            context=settings.engine_context,
        ),
        base=base,
        adapters=settings.adapters,
        cache=settings.home / "cache" / "adapters",
        limits=Limits(settings.engine_slots, settings.engine_max_waiting, settings.engine_adapter_mib << 20),
        timeout_s=settings.engine_timeout_s,
        max_body=settings.max_body,
    )


async def serve(settings: EngineSettings, options: ServerOptions) -> None:
    """Serves until SIGTERM or SIGINT."""
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    metrics = EngineMetrics()
    async with running_engine(options, metrics) as engine:
        health = MetricsHttp(
            host=settings.host, port=settings.metrics_port, registry=metrics.registry,
            ready=lambda: (True, "ready") if engine.generations.serving else (False, "the model is being loaded"),
        )  # fmt: skip
        await health.start()
        _log.info("listening", http_port=engine.port, metrics_port=health.port, model=options.generation.model.name)
        engine.loop.add_done_callback(lambda _: ended.set())
        await ended.wait()
        await health.stop()
        if engine.loop.done():
            engine.loop.result()  # raises the defect: the supervisor starts this process again


def main() -> None:
    """Reads the settings, finds the weights, serves."""
    settings = EngineSettings()
    configure_logs("engine", settings.log_level)
    try:
        options = build(settings)
    except ModelError as error:
        print(f"engine: {error}", file=sys.stderr)
        sys.exit(2)
    uvloop.run(serve(settings, options))


if __name__ == "__main__":
    main()
