"""Turns nominations into candidates with their conversations, and hands them to the Arbiter."""

from collections.abc import Callable, Sequence
from typing import Protocol

import orjson

from hivemind.servers.router.conversation import Conversation
from hivemind.servers.router.nomination import Nomination
from hivemind.servers.router.outbox import Letter


class Conversations(Protocol):
    """Where conversations are kept."""

    async def conversation(self, request_id: str) -> Conversation | None:
        """One conversation, None if it is not kept (any more)."""


class CandidateSink(Protocol):
    """The Arbiter's queue."""

    async def submit(self, candidates: Sequence[tuple[Nomination, Conversation]]) -> None:
        """Hands candidates over; MeshError if it cannot take them."""


class Nominations:
    """Delivers nominations. `on_lost` counts those whose conversation was gone."""

    def __init__(self, conversations: Conversations, sink: CandidateSink, *, on_lost: Callable[[int], None]) -> None:
        self._conversations, self._sink, self._on_lost = conversations, sink, on_lost

    async def deliver(self, letters: Sequence[Letter]) -> None:
        """Hands them over; MeshError if the Arbiter or the store is away."""
        nominations = [Nomination(**orjson.loads(letter.text)) for letter in letters]
        found = [(n, await self._conversations.conversation(n.request_id)) for n in nominations]
        candidates = [(nomination, talk) for nomination, talk in found if talk is not None]
        if candidates:
            await self._sink.submit(candidates)
        if len(candidates) < len(letters):
            self._on_lost(len(letters) - len(candidates))
