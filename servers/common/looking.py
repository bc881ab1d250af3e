"""Looks at a store or a peer again and again, and outlives its absence."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import structlog

from hivemind.servers.common.errors import MeshError

_log = structlog.get_logger()


async def keep_looking(
    look: Callable[[], Awaitable[None]], *, every_s: float, sooner: asyncio.Event | None = None
) -> None:
    """Calls `look` for ever, `every_s` seconds apart, or when `sooner` is set.

    A MeshError is a store or a peer that is away: the log tells of the first one only (`store_lost`), and looking goes
    on.
    """
    lost, due = False, sooner or asyncio.Event()
    while True:
        due.clear()
        try:
            await look()
            lost = False
        except MeshError as error:
            if not lost:
                _log.warning("store_lost", reason=error.reason, why=error.message)
            lost = True
        with suppress(TimeoutError):
            async with asyncio.timeout(every_s):
                await due.wait()
