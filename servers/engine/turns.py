"""Who is answered next by one generation.

llama.cpp computes the requests of one adapter together and leaves those of others until it has none of these (measured:
a request for an adapter got its first token after two overlapping ones for the base model had both ended, and under
steady traffic it would get none). So requests for different adapters take turns here, the one that has waited longest
first: nobody is overtaken for ever, and what is answered together is computed together.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class _Waiter:
    key: str | None
    granted: "asyncio.Future[bool]"


class Turns:
    """The slots of a generation. All requests that have one at a time are for the same adapter."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._running = 0
        self._key: str | None = None
        self._queue: list[_Waiter] = []
        self._closed = False
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def answered(self) -> int:
        """How many have a slot."""
        return self._running

    @asynccontextmanager
    async def turn(self, key: str | None) -> AsyncIterator[bool]:
        """Waits for a slot and holds it. False: there will be none, for the turns are closed."""
        if not await self._enter(key):
            yield False
            return
        try:
            yield True
        finally:
            self._leave()

    def close(self) -> None:
        """Sends everybody away who waits, in order; who has a slot keeps it."""
        self._closed = True
        waiting, self._queue = self._queue, []
        for waiter in waiting:
            if not waiter.granted.done():
                waiter.granted.set_result(False)

    async def idle(self) -> None:
        """Waits until nobody has a slot."""
        await self._idle.wait()

    async def _enter(self, key: str | None) -> bool:
        if self._closed:
            return False
        waiter = _Waiter(key, asyncio.get_running_loop().create_future())
        self._queue.append(waiter)
        self._admit()
        try:
            return await waiter.granted
        except asyncio.CancelledError:
            if waiter in self._queue:
                self._queue.remove(waiter)
                self._admit()
            elif not waiter.granted.cancelled() and waiter.granted.result():
                self._leave()
            raise

    def _leave(self) -> None:
        self._running -= 1
        if not self._running:
            self._idle.set()
        self._admit()

    def _admit(self) -> None:
        """Gives free slots to the first in the queue and those who wait for the same adapter, unless it is another's
        turn."""
        if not self._queue or (self._running and self._queue[0].key != self._key):
            return
        self._key = self._queue[0].key
        chosen = [w for w in self._queue if w.key == self._key][: self._slots - self._running]
        for waiter in chosen:
            self._queue.remove(waiter)
            self._running += 1
            self._idle.clear()
            waiter.granted.set_result(True)
