"""A load generator that costs little: `python bench/load.py PORT MODEL plain|stream CONCURRENCY COUNT RATE`.

Sends COUNT chat completions over CONCURRENCY keep-alive connections, as fast as they are answered (RATE 0) or at a
fixed rate a second over all. Prints JSON: seconds in all, latencies of each request in seconds, answers not whole.
"""

import asyncio
import json
import sys
import time
from typing import Any

import httptools
import uvloop


class Client(asyncio.Protocol):
    """One connection; `ask` sends a request and answers when the answer is whole."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection stands."""
        self._transport: Any = transport
        self._done: asyncio.Future[bool] | None = None
        self.closed = False

    def ask(self, request: bytes) -> "asyncio.Future[bool]":
        """Sends a request; the future tells whether the answer was good."""
        self._parser = httptools.HttpResponseParser(self)
        self._tail = b""
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._done

    def data_received(self, data: bytes) -> None:
        """Bytes of an answer."""
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        """A part of its body; only the end matters."""
        self._tail = (self._tail + body)[-64:]

    def on_message_complete(self) -> None:
        """The answer is whole."""
        good = self._parser.get_status_code() == 200 and (b"[DONE]" in self._tail or self._tail.rstrip().endswith(b"}"))
        self._finish(good)

    def connection_lost(self, error: Exception | None) -> None:
        """The server has hung up."""
        self.closed = True
        self._finish(False)

    def _finish(self, good: bool) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_result(good)


def request_of(port: int, model: str, stream: bool, key: str) -> bytes:
    """The bytes of one request."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "Tell me something about words, please."}],
        "max_tokens": 64,
    }
    data = json.dumps(body | ({"stream": True} if stream else {})).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        f"x-hivemind-tenant: bench\r\nAuthorization: Bearer {key}\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


async def run(port: int, model: str, stream: bool, concurrency: int, count: int, rate: float) -> dict[str, Any]:
    """Sends the load."""
    loop = asyncio.get_running_loop()
    request = request_of(port, model, stream, "bench-key")
    latencies: list[float] = []
    bad = 0
    left = count
    began = time.perf_counter()

    async def worker(number: int) -> None:
        nonlocal bad, left
        _, client = await loop.create_connection(Client, "127.0.0.1", port)
        turn = number
        while left > 0:
            left -= 1
            if rate:
                await asyncio.sleep(max(0.0, began + turn / rate - time.perf_counter()))
                turn += concurrency
            if client.closed:  # servers end idle connections
                _, client = await loop.create_connection(Client, "127.0.0.1", port)
            sent = time.perf_counter()
            good = await client.ask(request)
            latencies.append(time.perf_counter() - sent)
            bad += not good

    await asyncio.gather(*(worker(n) for n in range(concurrency)))
    return {"seconds": time.perf_counter() - began, "latencies": latencies, "bad": bad}


if __name__ == "__main__":
    port, model, kind, concurrency, count, rate = sys.argv[1:]
    result = uvloop.run(run(int(port), model, kind == "stream", int(concurrency), int(count), float(rate)))
    print(json.dumps(result))
