"""Composition root of the embedded engine: `python -m hivemind.servers.engine`."""

import asyncio
import signal
import sys

import structlog
from prometheus_client import CollectorRegistry, ProcessCollector

from hivemind.servers.common.logs import configure_logs
from hivemind.servers.common.metrics_http import MetricsHttp
from hivemind.servers.engine.engine import Engine, EngineOptions
from hivemind.servers.engine.model import ModelError, Remote, checked_file, resolve_courier
from hivemind.servers.engine.settings import EngineSettings

_log = structlog.get_logger()


def options_of(settings: EngineSettings) -> EngineOptions:
    """What to serve; ModelError if there is nothing to."""
    where = resolve_courier(settings.courier)
    if isinstance(where, Remote):
        raise ModelError("HIVEMIND_COURIER names a server, so no engine is needed; unset it to serve a model here")
    return EngineOptions(
        model=checked_file(where, settings.home / "cache"),
        host=settings.host,
        port=settings.http_port,
        threads=settings.engine_threads,
        slots=settings.engine_slots,
        context=settings.engine_context,
    )


async def serve(settings: EngineSettings, options: EngineOptions) -> None:
    """Serves until SIGTERM or SIGINT."""
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    loaded = asyncio.Event()
    health = MetricsHttp(
        host=settings.host, port=settings.metrics_port, registry=registry,
        ready=lambda: (loaded.is_set(), "ready" if loaded.is_set() else "the model is being loaded"),
    )  # fmt: skip
    await health.start()
    engine = await asyncio.to_thread(Engine, options)
    loaded.set()
    _log.info("serving", http_port=engine.port, metrics_port=health.port, model=options.model.name)
    await ended.wait()
    await health.stop()
    engine.close()


def main() -> None:
    """Reads the settings, finds the weights, serves."""
    settings = EngineSettings()
    configure_logs("engine", settings.log_level)
    try:
        options = options_of(settings)
    except ModelError as error:
        print(f"engine: {error}", file=sys.stderr)
        sys.exit(2)
    asyncio.run(serve(settings, options))


if __name__ == "__main__":
    main()
