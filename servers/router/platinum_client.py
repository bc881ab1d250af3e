"""The Arbiter's ledger as the Router reads it along: an index of examples, built aside and swapped in whole."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import grpc
import structlog

from hivemind.servers.common.channels import follow, peer_metadata
from hivemind.servers.common.redaction import has_placeholder
from hivemind.servers.router.example_book import ExampleBook
from hivemind.servers.router.example_index import PER_TENANT, ExampleIndex, Exemplar, flat_index
from hivemind.servers.router.likeness import Likeness
from hivemind.v1 import arbiter_pb2, arbiter_pb2_grpc

_log = structlog.get_logger()

NO_LIBRARY: Final = "the library faiss is not installed (the extra `retrieval`)"
_LOOK_S: Final = 0.5
_MESSAGE_MAX: Final = 1 << 20
_PORTION: Final = 50
_BREATH_S: Final = 0.01
"""After each portion of examples the requests have the event loop to themselves for so long."""


class PlatinumClient:
    """Keeps an ExampleBook up to date while `wanted`: whether any policy shows examples."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        book: ExampleBook,
        likeness: Likeness,
        *,
        wanted: Callable[[], bool],
        api_key: str | None,
        flat: Callable[[], Callable[[int], Any]] = flat_index,
    ) -> None:
        self._stub = arbiter_pb2_grpc.ArbiterServiceStub(channel)
        self._book, self._likeness, self._wanted, self._api_key, self._flat = book, likeness, wanted, api_key, flat
        self._building: ExampleIndex | None = None
        self._index: ExampleIndex | None = None

    async def watch(self) -> None:
        """Follows the ledger for ever. A lost stream is opened again and read from its beginning; the last index holds
        meanwhile, as long as the book lets it."""
        await follow("platinum", self._messages, self._take)

    async def _messages(self) -> AsyncIterator[arbiter_pb2.WatchPlatinumResponse]:
        await self._until_wanted()
        self._building = self._index = ExampleIndex(self._likeness, await self._library())
        request = arbiter_pb2.WatchPlatinumRequest(
            watcher="router", newest_per_tenant=PER_TENANT, largest_bytes=_MESSAGE_MAX
        )
        metadata = peer_metadata(self._api_key)
        count = 0
        async for message in self._stub.WatchPlatinum(request, metadata=metadata, wait_for_ready=True):
            yield message
            count += 1
            if count % _PORTION == 0:
                await asyncio.sleep(_BREATH_S)
            if not self._wanted():
                return

    def _take(self, message: arbiter_pb2.WatchPlatinumResponse) -> None:
        assert self._index is not None
        if message.HasField("example"):
            exemplar = exemplar_of(message.example)
            if exemplar is not None:
                self._index.add(exemplar)
        elif message.HasField("forgotten"):
            ids = list(message.forgotten.ids)
            self._index.forget(ids)
            self._book.forget(ids)
        elif self._building is not None:
            self._book.put(self._building)
            _log.info("examples_read", examples=len(self._building))
            self._building = None
        if self._building is None:
            self._book.heard()

    async def _until_wanted(self) -> None:
        while not self._wanted():
            self._book.drop()
            self._building = self._index = None
            await asyncio.sleep(_LOOK_S)

    async def _library(self) -> Callable[[int], Any]:
        """What makes indices. Without the library it says so once, and waits for the end of the process."""
        try:
            return await asyncio.to_thread(self._flat)
        except ImportError:
            _log.warning("retrieval_left_out", problem=NO_LIBRARY)
            self._book.drop(NO_LIBRARY)
            return await asyncio.Event().wait()  # type: ignore[return-value]


def exemplar_of(example: arbiter_pb2.PlatinumExample) -> Exemplar | None:
    """The question and answer of an example; None where there is no single question, an answer with something redacted,
    or no consent."""
    turns = [m for m in example.messages if m.role not in ("system", "developer")]
    answer = example.final_platinum_answer
    alone = len(turns) == 1 and turns[0].role == "user" and bool(turns[0].content.strip())
    if not alone or not answer.strip() or has_placeholder(answer) or not example.consent or not example.tenant:
        return None
    return Exemplar(example.id, example.tenant, turns[0].content, answer)
