"""Runs the OpenAI edge under uvicorn, in the Router's own event loop."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from hivemind.servers.router.openai_edge import OpenAIEdge

_KEEP_ALIVE_S = 3600  # the peer is Envoy, which closes what it no longer needs


class EdgeServer:
    """Serves the edge. Bind early, so that a taken port ends the start; `port` is the real one."""

    def __init__(self, edge: OpenAIEdge, *, host: str, port: int) -> None:
        self._socket = socket.create_server((host, port), backlog=2048)
        self.port: int = self._socket.getsockname()[1]
        self._server = _Server(
            uvicorn.Config(
                edge, http="httptools", ws="none", lifespan="off", access_log=False, log_config=None,
                server_header=False, date_header=False, proxy_headers=False, timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=30,
            )
        )  # fmt: skip
        self._done = asyncio.Event()

    async def run(self) -> None:
        """Serves until `stop`."""
        try:
            await self._server.serve(sockets=[self._socket])
        finally:
            self._done.set()

    async def stop(self) -> None:
        """Lets requests under way end and closes the port."""
        self._server.should_exit = True
        if self._server.started:
            await self._done.wait()


class _Server(uvicorn.Server):
    """Signals belong to the mesh's server, not to uvicorn."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
