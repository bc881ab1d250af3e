"""Sends nominations to the Arbiter, off the path, until each has arrived."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import orjson
import structlog

from hivemind.servers.common.errors import MeshError
from hivemind.servers.router.conversation import Conversation
from hivemind.servers.router.nomination import Nomination
from hivemind.servers.router.outbox import Letter

_log = structlog.get_logger()

BATCH: Final = 50
_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 10.0
_REFUSED: Final = frozenset({"INVALID_FIELD", "MISSING_FIELD", "MALFORMED_REQUEST", "REQUEST_TOO_LARGE"})


class Outbox(Protocol):
    """Where nominations wait; see outbox.RedisOutbox."""

    async def take(self, count: int) -> list[Letter]:
        """Letters to send, each a nomination."""

    async def done(self, letters: Sequence[Letter]) -> None:
        """Takes letters out for good."""


class Conversations(Protocol):
    """Where conversations are kept."""

    async def conversation(self, request_id: str) -> Conversation | None:
        """One conversation, None if it is not kept (any more)."""


class CandidateSink(Protocol):
    """The Arbiter's queue."""

    async def submit(self, candidates: Sequence[tuple[Nomination, Conversation]]) -> None:
        """Hands candidates over; MeshError if it cannot take them."""


class NominationSender:
    """Carries nominations from the outbox to the Arbiter. `on_lost` counts those whose conversation was gone."""

    def __init__(
        self, outbox: Outbox, conversations: Conversations, sink: CandidateSink, *, on_lost: Callable[[int], None]
    ) -> None:
        self._outbox, self._conversations, self._sink, self._on_lost = outbox, conversations, sink, on_lost

    async def run(self) -> None:
        """Sends for ever; while the Arbiter or the store is away it waits longer and longer, up to 10 s."""
        pause_s = _PAUSE_S
        while True:
            try:
                sent = await self.send()
                pause_s = 0.0 if sent == BATCH else _PAUSE_S
            except MeshError as error:
                pause_s = min(_LONGEST_PAUSE_S, max(_PAUSE_S, 2 * pause_s))
                _log.info("nominations_wait", reason=error.reason)
            await asyncio.sleep(pause_s)

    async def send(self) -> int:
        """Sends a batch; how many were taken from the outbox. MeshError if the Arbiter or the store is away."""
        letters = await self._outbox.take(BATCH)
        if not letters:
            return 0
        nominations = [Nomination(**orjson.loads(letter.text)) for letter in letters]
        found = [(n, await self._conversations.conversation(n.request_id)) for n in nominations]
        candidates = [(nomination, talk) for nomination, talk in found if talk is not None]
        if len(candidates) < len(letters):
            self._on_lost(len(letters) - len(candidates))
        await self._submit(candidates)
        await self._outbox.done(letters)
        return len(letters)

    async def _submit(self, candidates: Sequence[tuple[Nomination, Conversation]]) -> None:
        """One by one where the Arbiter finds fault with a batch: one bad candidate does not hold up the rest."""
        try:
            if candidates:
                await self._sink.submit(candidates)
        except MeshError as error:
            if error.reason not in _REFUSED:
                raise
            if len(candidates) == 1:
                _log.warning("candidate_refused", request_id=candidates[0][0].request_id, reason=error.reason)
                return
            for candidate in candidates:
                await self._submit([candidate])
