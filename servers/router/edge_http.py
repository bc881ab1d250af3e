"""HTTP/1.1 for the OpenAI edge, on httptools: keep-alive, bodies and answers by length or chunked.

Its peer is Envoy, which keeps the slow, the many and the malformed away; other clients are answered as well.
docs/adr/0015 says why it is our own.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

import httptools

HEAD_MAX: Final = 1 << 16
"""Bytes of a request's target and headers."""
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_STATUS: Final = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n".encode() for s in HTTPStatus}
_BAD_REQUEST: Final = _STATUS[400] + b"content-length: 0\r\nconnection: close\r\n\r\n"
_CHUNKED: Final = b"transfer-encoding: chunked\r\n"
_CLOSE: Final = b"connection: close\r\n"
_END: Final = b"0\r\n\r\n"

Headers = Sequence[tuple[bytes, bytes]]


@dataclass(slots=True)
class HttpRequest:
    """A request with its whole body; `body` is None if that is larger than the server takes. Header names are in
    lower case, `path` is without the query."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes | None


class HttpReply:
    """The answer to one request: `whole` alone, or `start`, any number of `write`, and `end`. Where the end is missing,
    the connection is closed in the middle of the answer, so that nobody takes it for a whole one."""

    __slots__ = ("_bare", "_chunked", "_connection", "_head", "_keep", "ended", "started")

    def __init__(self, connection: "EdgeConnection", *, keep: bool, chunked: bool, bare: bool) -> None:
        self._connection, self._keep, self._chunked, self._bare = connection, keep, chunked, bare
        self._head = b""
        self.started = self.ended = False

    def watch(self, callback: Callable[[], None] | None) -> None:
        """Whom to call when the client leaves before the end; None: nobody."""
        self._connection.watch(callback)

    def whole(self, status: int, headers: Headers, body: bytes) -> None:
        """Answers all at once."""
        self._keep = self._keep and not self._connection.last
        head = b"%bcontent-length: %d\r\n%b\r\n" % (_lines(status, headers), len(body), b"" if self._keep else _CLOSE)
        self._connection.write(head if self._bare else head + body)
        self.started = self.ended = True

    def start(self, status: int, headers: Headers) -> None:
        """Begins an answer of unknown length. Its head goes out with the first piece, or when this turn of the event
        loop ends: every write is a system call here and a wake-up in Envoy."""
        self._keep = self._keep and self._chunked and not self._connection.last
        how = (_CHUNKED if self._chunked else b"") + (b"" if self._keep else _CLOSE)
        self._head = b"%b%b\r\n" % (_lines(status, headers), how)
        self._connection.soon(self._flush)
        self.started = True

    async def write(self, piece: bytes) -> None:
        """A piece of the body; waits while the client is too slow to take more."""
        if piece and not self._bare:
            self._connection.write(self._piece(piece))
        await self._connection.writable()

    def end(self, piece: bytes = b"") -> None:
        """The last piece of the body."""
        last = b"" if self._bare or not piece else self._piece(piece)
        self._connection.write(self._taken() + last + (_END if self._chunked and not self._bare else b""))
        self.ended = True

    @property
    def keep(self) -> bool:
        """Whether another request may follow."""
        return self._keep and self.ended

    def _piece(self, piece: bytes) -> bytes:
        return b"%b%x\r\n%b\r\n" % (self._taken(), len(piece), piece) if self._chunked else self._taken() + piece

    def _taken(self) -> bytes:
        head, self._head = self._head, b""
        return head

    def _flush(self) -> None:
        if self._head:
            self._connection.write(self._taken())


Handler = Callable[[HttpRequest, HttpReply], Awaitable[None]]


class EdgeConnection(asyncio.Protocol):
    """One connection; its requests are answered one after the other, each in a task of its own.

    `open_connections`: it adds itself and leaves at its end; `max_body`: bytes. `last`: no request follows the one
    under way, whose `task` it is.
    """

    def __init__(
        self, handler: Handler, open_connections: "set[EdgeConnection]", loop: asyncio.AbstractEventLoop, max_body: int
    ) -> None:
        self._handler, self._open, self._loop, self._max_body = handler, open_connections, loop, max_body
        self._transport: Any = None
        self._parser: Any = httptools.HttpRequestParser(self)
        self._begin()
        self._in_head, self._head_size = True, 0
        self._waiting: deque[tuple[HttpRequest, HttpReply]] = deque()
        self._on_lost: Callable[[], None] | None = None
        self._drained: asyncio.Future[None] | None = None
        self._lost = self._deaf = self.last = False
        self.task: asyncio.Task[None] | None = None

    def drain(self) -> None:
        """No further request: closes now, or after the answer under way."""
        self.last = True
        if self.task is None:
            self._transport.close()

    def watch(self, callback: Callable[[], None] | None) -> None:
        """See HttpReply.watch."""
        self._on_lost = callback
        if callback is not None and self._lost:
            callback()

    def write(self, data: bytes) -> None:
        """Sends bytes, unless there is nobody to take them."""
        if data and not self._lost:
            self._transport.write(data)

    def soon(self, callback: Callable[[], None]) -> None:
        """Calls back when this turn of the event loop ends."""
        self._loop.call_soon(callback)

    async def writable(self) -> None:
        """Waits until the client takes more."""
        if self._drained is not None:
            await self._drained

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self._transport = transport
        self._open.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._lost = True
        self._open.discard(self)
        self._waiting.clear()
        self.resume_writing()
        if self._on_lost is not None:
            self._on_lost()

    def pause_writing(self) -> None:
        """See asyncio.Protocol."""
        self._drained = self._loop.create_future()

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        drained, self._drained = self._drained, None
        if drained is not None and not drained.done():
            drained.set_result(None)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        if self._deaf:
            return
        try:
            if self._in_head:
                self._head_size += len(data)
            self._parser.feed_data(data)
            if self._in_head and self._head_size > HEAD_MAX:
                raise httptools.HttpParserError("headers too large")
        except httptools.HttpParserUpgrade:  # the request is answered as it stands, then the connection ends
            self._deaf = self.last = True
        except httptools.HttpParserError:
            self._deaf = self.last = True
            if self.task is None:
                self.write(_BAD_REQUEST)
                self._transport.close()
        if self._waiting:
            self._transport.pause_reading()

    def on_message_begin(self) -> None:
        """See httptools."""
        self._begin()

    def on_url(self, url: bytes) -> None:
        """See httptools."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """See httptools."""
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """See httptools."""
        self._in_head, self._head_size = False, 0
        if self._headers.get("expect", "").lower() == "100-continue":
            self.write(_CONTINUE)

    def on_body(self, body: bytes) -> None:
        """See httptools. A body that is too large is answered at once, and nothing more is heard."""
        if self._deaf:
            return
        self._pieces.append(body)
        self._size += len(body)
        if self._size > self._max_body:
            self._deaf = self.last = True
            self._take(None, keep=False)

    def on_message_complete(self) -> None:
        """See httptools."""
        if self._deaf:
            return
        self._in_head = True
        body = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._take(body, keep=self._parser.should_keep_alive())

    def _begin(self) -> None:
        self._url, self._headers, self._pieces, self._size = b"", {}, [], 0

    def _take(self, body: bytes | None, *, keep: bool) -> None:
        parser = self._parser
        method: str = parser.get_method().decode("latin-1")
        path = self._url.partition(b"?")[0].decode("latin-1")
        request = HttpRequest(method, path, self._headers, body)
        reply = HttpReply(self, keep=keep, chunked=parser.get_http_version() != "1.0", bare=method == "HEAD")
        if self.task is None:
            self._answer(request, reply)
        else:
            self._waiting.append((request, reply))

    def _answer(self, request: HttpRequest, reply: HttpReply) -> None:
        self.task = self._loop.create_task(self._serve(request, reply))

    async def _serve(self, request: HttpRequest, reply: HttpReply) -> None:
        try:
            await self._handler(request, reply)
        finally:
            self._on_lost = self.task = None
            if self.last or not reply.keep:
                self._transport.close()
            elif self._waiting:
                self._answer(*self._waiting.popleft())
                if not self._waiting:
                    self._transport.resume_reading()


def _lines(status: int, headers: Headers) -> bytes:
    first = _STATUS.get(status) or b"HTTP/1.1 %d \r\n" % status
    return first + b"".join([b"%b: %b\r\n" % line for line in headers])
