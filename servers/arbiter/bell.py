"""Wakes everybody who waits for something to happen."""

import asyncio
from contextlib import suppress


class Bell:
    """A ticket taken before looking hears every ring after it, so that nothing is missed between look and wait."""

    def __init__(self) -> None:
        self._next = asyncio.Event()

    def ticket(self) -> asyncio.Event:
        """What to wait with for the next ring."""
        return self._next

    def ring(self) -> None:
        """Wakes all tickets."""
        self._next.set()
        self._next = asyncio.Event()


async def heard(ticket: asyncio.Event, within_s: float) -> None:
    """Returns with the ring, or when the time is over."""
    with suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            await ticket.wait()
