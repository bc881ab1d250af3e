"""A model server that costs next to nothing: `python bench/mock_upstream.py`. Prints its port.

Plain answers are one write; streams are 32 chunks, 5 ms apart. It is raw asyncio on httptools, so that it is never the
bottleneck of what is measured.
"""

import asyncio
import json
from typing import Any

import httptools
import uvloop

CHUNKS = 32
SPACING_S = 0.005
USAGE = {"prompt_tokens": 20, "completion_tokens": 32, "total_tokens": 52}


def _head(kind: str, length: str) -> bytes:
    return f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\n{length}\r\n\r\n".encode()


def _event(body: dict[str, Any]) -> bytes:
    data = (
        b"data: "
        + json.dumps({"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "mock", **body}).encode()
        + b"\n\n"
    )
    return b"%x\r\n%b\r\n" % (len(data), data)


_ANSWER = json.dumps(
    {
        "id": "c1", "object": "chat.completion", "created": 1, "model": "mock", "usage": USAGE,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "word " * 32}, "finish_reason": "stop"}],
    }
).encode()  # fmt: skip
PLAIN = _head("application/json", f"Content-Length: {len(_ANSWER)}") + _ANSWER
STREAM_HEAD = _head("text/event-stream", "Transfer-Encoding: chunked")
CHUNK = _event({"choices": [{"index": 0, "delta": {"content": "word "}, "finish_reason": None}]})
FINISH = _event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
USAGE_CHUNK = _event({"choices": [], "usage": USAGE})
END = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"


class Mock(asyncio.Protocol):
    """One connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected."""
        self._transport: Any = transport
        self._parser = httptools.HttpRequestParser(self)
        self._body = b""

    def data_received(self, data: bytes) -> None:
        """Bytes of a request."""
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        """A request begins."""
        self._body = b""

    def on_body(self, body: bytes) -> None:
        """A part of its body."""
        self._body += body

    def on_message_complete(self) -> None:
        """A request is whole."""
        if b'"stream":true' not in self._body.replace(b" ", b""):
            self._transport.write(PLAIN)
            return
        self._transport.write(STREAM_HEAD)
        self._usage = b'"include_usage":true' in self._body.replace(b" ", b"")
        self._next(0)

    def _next(self, number: int) -> None:
        if self._transport.is_closing():
            return
        if number < CHUNKS:
            self._transport.write(CHUNK)
            asyncio.get_running_loop().call_later(SPACING_S, self._next, number + 1)
            return
        self._transport.write(FINISH + (USAGE_CHUNK if self._usage else b"") + END)


async def main() -> None:
    """Serves until it is ended."""
    server = await asyncio.get_running_loop().create_server(Mock, "127.0.0.1", 0, backlog=2048)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
