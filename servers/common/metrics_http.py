"""The plain HTTP port of a server: /metrics, /healthz (the process answers) and /readyz (it takes calls)."""

from collections.abc import Callable

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

Ready = Callable[[], tuple[bool, str]]
"""Says whether the server takes calls, and in one sentence what it waits for."""


class MetricsHttp:
    """Serves metrics and health of one process. Use `start` and `stop`; `port` is the real one after `start`."""

    def __init__(self, *, host: str, port: int, registry: CollectorRegistry, ready: Ready) -> None:
        self._host, self.port, self._registry, self._ready = host, port, registry, ready
        app = web.Application()
        app.add_routes(
            [web.get("/metrics", self._metrics), web.get("/healthz", self._healthz), web.get("/readyz", self._readyz)]
        )
        self._runner = web.AppRunner(app, access_log=None)

    async def start(self) -> None:
        """Binds the port; OSError if it is taken."""
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._host, self.port)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Frees the port."""
        await self._runner.cleanup()

    async def _metrics(self, _request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})

    async def _healthz(self, _request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _readyz(self, _request: web.Request) -> web.Response:
        ready, why = self._ready()
        return web.json_response({"ready": ready, "detail": why}, status=200 if ready else 503)
