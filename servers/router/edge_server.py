"""Runs the OpenAI edge in the Router's own event loop."""

import asyncio
import socket
from typing import Final

from hivemind.servers.router.edge_http import EdgeConnection, Handler

_BACKLOG: Final = 2048
_GRACE_S: Final = 30.0


class EdgeServer:
    """Serves a handler. Bind early, so that a taken port ends the start; `port` is the real one. `max_body`: bytes."""

    def __init__(self, handler: Handler, *, host: str, port: int, max_body: int) -> None:
        self._socket = socket.create_server((host, port), backlog=_BACKLOG)
        self.port: int = self._socket.getsockname()[1]
        self._handler, self._max_body = handler, max_body
        self._connections: set[EdgeConnection] = set()
        self._listening: asyncio.Server | None = None
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Takes connections until `stop`."""
        loop = asyncio.get_running_loop()
        self._listening = await loop.create_server(
            lambda: EdgeConnection(self._handler, self._connections, loop, self._max_body), sock=self._socket
        )
        await self._stopping.wait()

    async def stop(self) -> None:
        """Closes the port and lets requests under way end, half a minute long."""
        self._stopping.set()
        if self._listening is None:
            self._socket.close()
            return
        self._listening.close()
        for connection in list(self._connections):
            connection.drain()
        under_way = [c.task for c in self._connections if c.task is not None]
        if under_way:
            await asyncio.wait(under_way, timeout=_GRACE_S)
