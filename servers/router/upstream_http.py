"""HTTP/1.1 to model servers on httptools: pooled keep-alive connections, bytes handed on as they come.

It does what the Router's upstreams need and no more: POST, a body with a length, answers by length, chunked or until
the end of the connection. docs/adr/0006 says why it is our own.
"""

import asyncio
import socket
import ssl
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import httptools

from hivemind.servers.common.catalogue import Endpoint
from hivemind.servers.router.ports import UpstreamError

HIGH_WATER: Final = 1 << 18
"""Bytes that wait for a slow reader before the connection is paused."""
KEEP_ALIVE_S: Final = 30.0
_IDLE_MAX: Final = 256
_HEADERS_MAX: Final = 1 << 16
_LATE: Final = "the model server did not answer in time"
_BROKEN: Final = "the model server broke off in the middle of its answer"


class HttpUpstream:
    """Implements ports.Upstream. Make it inside the running loop; `close` at the end."""

    def __init__(self, *, connections: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._room = asyncio.Semaphore(connections)
        self._idle: dict[str, deque[_Connection]] = {}
        self._prefixes: dict[tuple[str, str], bytes] = {}
        self._tls = ssl.create_default_context()

    async def post(
        self,
        endpoint: Endpoint,
        path: str,
        body: bytes,
        headers: Mapping[str, str],
        *,
        connect_s: float,
        answer_s: float,
    ) -> "HttpResponse":
        """See ports.Upstream. A pooled connection that turns out to be closed is replaced by a new one, once."""
        request = self._request(endpoint, path, body, headers)
        await self._room.acquire()
        try:
            connection = self._pooled(endpoint.base_url)
            if connection is not None:
                try:
                    return await self._exchange(endpoint, connection, request, answer_s)
                except _Stale:
                    pass
            connection = await self._connect(endpoint, min(connect_s, answer_s))
            return await self._exchange(endpoint, connection, request, answer_s)
        except _Stale as error:
            self._room.release()
            raise UpstreamError("disconnected", str(error)) from error
        except BaseException:
            self._room.release()
            raise

    async def close(self) -> None:
        """Closes every idle connection."""
        for connections in self._idle.values():
            for connection in connections:
                connection.close()
        self._idle.clear()

    async def _exchange(
        self, endpoint: Endpoint, connection: "_Connection", request: bytes, answer_s: float
    ) -> "HttpResponse":
        # a timer of the loop costs a tenth of asyncio.timeout
        timer = self._loop.call_later(answer_s, connection.fail, UpstreamError("timeout", _LATE))
        try:
            await connection.send(request)
        except BaseException:
            connection.close()
            raise
        finally:
            timer.cancel()
        return HttpResponse(connection, lambda: self._take_back(endpoint.base_url, connection))

    def _take_back(self, base_url: str, connection: "_Connection") -> None:
        self._room.release()
        idle = self._idle.setdefault(base_url, deque())
        if connection.reusable and len(idle) < _IDLE_MAX:
            connection.idle_since = self._loop.time()
            idle.append(connection)
        else:
            connection.close()

    def _pooled(self, base_url: str) -> "_Connection | None":
        idle = self._idle.get(base_url)
        oldest = self._loop.time() - KEEP_ALIVE_S
        while idle:
            connection = idle.pop()
            if connection.reusable and connection.idle_since > oldest:
                return connection
            connection.close()
        return None

    async def _connect(self, endpoint: Endpoint, connect_s: float) -> "_Connection":
        parts = urlsplit(endpoint.base_url)
        secure = parts.scheme == "https"
        port = parts.port or (443 if secure else 80)
        try:
            async with asyncio.timeout(connect_s):
                _, connection = await self._loop.create_connection(
                    lambda: _Connection(self._loop), parts.hostname or "", port, ssl=self._tls if secure else None
                )
        except TimeoutError as error:
            message = "the model server did not accept a connection in time"
            raise UpstreamError("connect_timeout", message) from error
        except ssl.SSLError as error:
            raise UpstreamError("tls", "the TLS connection to the model server failed") from error
        except OSError as error:
            raise _told(error) from error
        return connection

    def _request(self, endpoint: Endpoint, path: str, body: bytes, headers: Mapping[str, str]) -> bytes:
        prefix = self._prefixes.get((endpoint.base_url, path))
        if prefix is None:
            parts = urlsplit(endpoint.base_url)
            host = parts.netloc.rpartition("@")[2]
            prefix = f"POST {parts.path}{path} HTTP/1.1\r\nHost: {host}\r\n".encode("ascii")
            self._prefixes[(endpoint.base_url, path)] = prefix
        lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        return b"%b%bContent-Length: %d\r\n\r\n%b" % (prefix, lines.encode("latin-1"), len(body), body)


class HttpResponse:
    """Implements ports.UpstreamResponse."""

    __slots__ = ("_connection", "_give_back", "status")

    def __init__(self, connection: "_Connection", give_back: Callable[[], None]) -> None:
        self._connection = connection
        self._give_back: Callable[[], None] | None = give_back
        self.status: int = connection.status

    def header(self, name: str) -> str:
        """See ports.UpstreamResponse."""
        return self._connection.headers.get(name.lower(), "")

    async def read(self, limit: int, *, within_s: float) -> bytes:
        """See ports.UpstreamResponse."""
        if self._connection.complete:
            return await self._read(limit)
        timer = self._connection.loop.call_later(within_s, self.fail, UpstreamError("timeout", _LATE))
        try:
            return await self._read(limit)
        finally:
            timer.cancel()

    async def _read(self, limit: int) -> bytes:
        connection = self._connection
        pieces: list[bytes] = []
        size = 0
        while True:
            chunk = await connection.next()
            if not chunk:
                return pieces[0] if len(pieces) == 1 else b"".join(pieces)
            pieces.append(chunk)
            size += len(chunk)
            if size > limit:
                raise UpstreamError("too_large", f"the model server's answer is larger than {limit} bytes")

    async def next(self) -> bytes:
        """See ports.UpstreamResponse."""
        return await self._connection.next()

    def fail(self, error: Exception) -> None:
        """See ports.UpstreamResponse."""
        self._connection.fail(error)

    def close(self) -> None:
        """See ports.UpstreamResponse."""
        if self._give_back is not None:
            give_back, self._give_back = self._give_back, None
            give_back()


class _Stale(Exception):
    """The connection was closed before a byte of the answer came."""


class _Connection(asyncio.Protocol):
    """One connection; one exchange at a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.status = 0
        self.headers: dict[str, str] = {}
        self.idle_since = 0.0
        self._transport: Any = None
        self._parser: Any = None
        self._waiter: asyncio.Future[None] | None = None
        self._pieces: list[bytes] = []
        self._size = 0
        self._header_bytes = 0
        self._head = self.complete = self._keep = self._paused = False
        self._error: Exception | None = None
        self._failed: Exception | None = None
        self._closed = False
        self._by_length = False

    @property
    def reusable(self) -> bool:
        """Whether another exchange may follow."""
        return self.complete and self._keep and not self._closed

    async def send(self, request: bytes) -> None:
        """Sends a request and waits for the headers; _Stale if the connection ends before them."""
        self._parser = httptools.HttpResponseParser(self)
        self.headers = {}
        self._head = self.complete = self._keep = self._by_length = False
        self._error = self._failed = None
        self._header_bytes = 0
        self._pieces.clear()
        self._transport.write(request)
        while not self._head:
            if self._failed is not None or self._error is not None:
                raise self._failed or self._error or UpstreamError("truncated", _BROKEN)
            if self._closed:
                raise _Stale("the model server closed the connection without an answer")
            await self._news()

    async def next(self) -> bytes:
        """What has come of the body since; empty at its end. UpstreamError if it breaks off."""
        while self._failed is not None or not self._pieces:
            if self._failed is not None or self._error is not None:
                raise self._failed or self._error or UpstreamError("truncated", _BROKEN)
            if self.complete:
                return b""
            if self._closed:
                raise UpstreamError("truncated", _BROKEN)
            await self._news()
        data = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        self._size = 0
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        return data

    def fail(self, error: Exception) -> None:
        """Has the read that waits, or the next one, raise an error."""
        self._failed = error
        self._wake()

    def close(self) -> None:
        """Ends the connection."""
        if self._transport is not None:
            self._transport.abort()

    async def _news(self) -> None:
        self._waiter = self.loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        if self._parser is None or self.complete:
            self.close()  # an answer that nobody asked for
            return
        try:
            if not self._head:
                self._header_bytes += len(data)
            self._parser.feed_data(data)
            if not self._head and self._header_bytes > _HEADERS_MAX:
                raise httptools.HttpParserError("headers too large")
        except httptools.HttpParserError:
            self._error = UpstreamError("protocol", "the model server's answer is not HTTP that can be read")
            self.close()
        if self._size > HIGH_WATER and not self._paused:
            self._paused = True
            self._transport.pause_reading()
        if self._head or self._error is not None:
            self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        """See asyncio.Protocol. An answer without a length ends with its connection."""
        self._closed = True
        if self._head and not self.complete and not self._by_length and error is None:
            self.complete = True
        self._wake()

    def on_header(self, name: bytes, value: bytes) -> None:
        """See httptools."""
        key = name.decode("latin-1").lower()
        self.headers[key] = value.decode("latin-1")
        if key in ("content-length", "transfer-encoding"):
            self._by_length = True

    def on_headers_complete(self) -> None:
        """See httptools. An interim answer (1xx) is passed over."""
        self.status = self._parser.get_status_code()
        if self.status >= 200:
            self._head = True
        else:
            self.headers = {}

    def on_body(self, body: bytes) -> None:
        """See httptools."""
        self._pieces.append(body)
        self._size += len(body)

    def on_message_complete(self) -> None:
        """See httptools."""
        if self.status >= 200:
            self.complete = True
            self._keep = self._parser.should_keep_alive()


def _told(error: OSError) -> UpstreamError:
    """What went wrong, without addresses."""
    if isinstance(error, socket.gaierror):
        return UpstreamError("dns", "the name of the model server cannot be resolved")
    if isinstance(error, ConnectionRefusedError):
        return UpstreamError("connect", "the model server refuses connections")
    return UpstreamError("connect", f"the model server cannot be reached ({type(error).__name__})")
