"""Runs the OpenAI edge under uvicorn, in the Router's own event loop."""

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from hivemind.servers.router.openai_edge import DISCONNECT, OpenAIEdge

_HEAD = b"HTTP/1.1 "
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
    """A transport that sends the head of an answer together with the first piece of its body.

    uvicorn writes them apart; each write is a system call here and a wake-up in Envoy. A head without a body yet goes
    out with the end of this turn of the event loop.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._head = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """See asyncio.WriteTransport."""
        if data.startswith(_HEAD):
            self._loop.call_soon(self._flush)
            self._head = data
        elif self._head:
            head, self._head = self._head, b""
            self._transport.write(head + data)
        else:
            self._transport.write(data)

    def close(self) -> None:
        """See asyncio.WriteTransport."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        head, self._head = self._head, b""
        if head and not self._transport.is_closing():
            self._transport.write(head)


class _Protocol(HttpToolsProtocol):
    """uvicorn's HTTP over such a transport. The scope's extension `hivemind.disconnect` takes a callback for the end of
    the connection, or None: waiting for `http.disconnect` in ASGI's way costs a task for every request."""

    _lost = False
    _on_lost: Callable[[], None] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio.Protocol."""
        super().connection_made(_OneWrite(transport, self.loop))  # type: ignore[arg-type]

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        super().connection_lost(exc)
        self._lost = True
        if self._on_lost is not None:
            self._on_lost()

    def on_message_begin(self) -> None:
        """See httptools."""
        super().on_message_begin()
        self.scope["extensions"] = {DISCONNECT: self._watch}  # type: ignore[dict-item]

    def _watch(self, callback: Callable[[], None] | None) -> None:
        self._on_lost = callback
        if callback is not None and self._lost:
            callback()


class _Server(uvicorn.Server):
    """Signals belong to the mesh's server, not to uvicorn."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
