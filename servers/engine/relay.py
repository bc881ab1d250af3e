"""HTTP to a generation: one request, whose answer's bytes are handed on."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final

import aiohttp

from hivemind.servers.engine.errors import EngineError

_CONNECT_S: Final = 10.0


class UpstreamAnswer:
    """A generation's answer. Reading it raises EngineError generation or timeout when it breaks off."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.status: int = response.status
        self.content_type: str = response.headers.get("content-type", "application/json")

    @property
    def is_stream(self) -> bool:
        """Whether it is a stream of events."""
        return self.content_type.startswith("text/event-stream")

    async def read(self) -> bytes:
        """The whole body."""
        with _told():
            return await self._response.read()

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes."""
        while True:
            with _told():
                chunk = await self._response.content.readany()
            if not chunk:
                return
            yield chunk

    async def lines(self) -> AsyncIterator[bytes]:
        """The body line by line."""
        while True:
            with _told():
                line = await self._response.content.readline()
            if not line:
                return
            yield line


class Relay:
    """A client of generations. A connection carries one request: llama.cpp keeps a thread for each that stays open,
    and closing it is how it learns that nobody waits for the answer any more. Make it inside the running loop."""

    def __init__(self, *, timeout_s: float) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
            timeout=aiohttp.ClientTimeout(total=timeout_s, connect=_CONNECT_S),
            auto_decompress=False,
        )

    @asynccontextmanager
    async def post(self, port: int, path: str, body: bytes) -> AsyncIterator[UpstreamAnswer]:
        """The answer, once its head is there; its connection is closed at the end of the block. Raises EngineError."""
        headers = {"content-type": "application/json"}
        with _told():
            response = await self._session.post(f"http://127.0.0.1:{port}{path}", data=body, headers=headers)
        try:
            yield UpstreamAnswer(response)
        finally:
            response.close()

    async def close(self) -> None:
        """Ends every connection."""
        await self._session.close()


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise EngineError("timeout", "the model did not finish in time") from error
    except (aiohttp.ClientError, ValueError) as error:  # ValueError: a line without an end
        raise EngineError("generation", "the model broke off in the middle of its answer") from error
