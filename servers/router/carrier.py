"""Carries what waits in an outbox to another server, off the path, until it has arrived."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol

import structlog

from hivemind.servers.common.errors import MeshError
from hivemind.servers.router.outbox import Letter

_log = structlog.get_logger()

BATCH: Final = 100
_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 10.0
_FAULTY: Final = frozenset({"INVALID_FIELD", "MISSING_FIELD", "MALFORMED_REQUEST", "REQUEST_TOO_LARGE"})


class Outbox(Protocol):
    """Where letters wait; see outbox.RedisOutbox."""

    async def take(self, count: int) -> list[Letter]:
        """Letters to send."""

    async def done(self, letters: Sequence[Letter]) -> None:
        """Takes letters out for good."""


class Carrier:
    """Sends the letters of one outbox.

    `deliver` hands a batch over, or raises MeshError, and then gets it again. Where the receiver finds fault with a
    batch it gets the letters one by one, and the faulty ones are dropped: one bad letter does not hold up the rest.
    """

    def __init__(self, outbox: Outbox, deliver: Callable[[Sequence[Letter]], Awaitable[None]]) -> None:
        self._outbox, self._deliver = outbox, deliver

    async def run(self) -> None:
        """Sends for ever; while the receiver or the store is away it waits longer and longer, up to 10 s."""
        pause_s = _PAUSE_S
        while True:
            try:
                pause_s = 0.0 if await self.send() == BATCH else _PAUSE_S
            except MeshError as error:
                pause_s = min(_LONGEST_PAUSE_S, max(_PAUSE_S, 2 * pause_s))
                _log.info("letters_wait", reason=error.reason)
            await asyncio.sleep(pause_s)

    async def send(self) -> int:
        """Sends a batch; how many letters there were. MeshError if the receiver or the store is away."""
        letters = await self._outbox.take(BATCH)
        if letters:
            await self._hand_over(letters)
            await self._outbox.done(letters)
        return len(letters)

    async def _hand_over(self, letters: Sequence[Letter]) -> None:
        try:
            await self._deliver(letters)
        except MeshError as error:
            if error.reason not in _FAULTY:
                raise
            if len(letters) == 1:
                _log.warning("letter_refused", reason=error.reason, why=error.message[:200])
                return
            for letter in letters:
                await self._hand_over([letter])
