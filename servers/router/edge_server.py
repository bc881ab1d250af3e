"""Runs the OpenAI edge under uvicorn, in the Router's own event loop."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from hivemind.servers.router.openai_edge import OpenAIEdge

_KEEP_ALIVE_S = 3600  # the peer is Envoy, which closes what it no longer needs


class EdgeServer:
    """Serves the edge. Bind early, so that a taken port ends the start; `port` is the real one."""

    def __init__(self, edge: OpenAIEdge, *, host: str, port: int) -> None:
        self._socket = socket.create_server((host, port), backlog=2048)
        self.port: int = self._socket.getsockname()[1]
        self._server = _Server(
            uvicorn.Config(
                edge, http=_Protocol, ws="none", lifespan="off", access_log=False, log_config=None,
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


class _OneWrite:
    """A transport that sends all that is written in one turn of the event loop together.

    uvicorn writes the head and the body of an answer apart; each write is a system call here and a wake-up in Envoy.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._waiting: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """See asyncio.WriteTransport."""
        if not self._waiting:
            self._loop.call_soon(self._flush)
        self._waiting.append(data)

    def close(self) -> None:
        """See asyncio.WriteTransport."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        waiting = self._waiting
        if waiting:
            self._waiting = []
            if not self._transport.is_closing():
                self._transport.write(waiting[0] if len(waiting) == 1 else b"".join(waiting))


class _Protocol(HttpToolsProtocol):
    """uvicorn's HTTP over such a transport."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio.Protocol."""
        super().connection_made(_OneWrite(transport, self.loop))  # type: ignore[arg-type]


class _Server(uvicorn.Server):
    """Signals belong to the mesh's server, not to uvicorn."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
