"""Ends tasks for certain."""

import asyncio
from typing import Any, Final

_AGAIN_S: Final = 0.2


async def end_tasks(*tasks: "asyncio.Future[Any]") -> None:
    """Cancels tasks and waits until they have ended; their outcomes stay in them.

    Cancelled again as often as need be: `asyncio.wait_for` of Python 3.11, which redis-py sends with, loses a
    cancellation that comes when what it waits for is just done (CPython issue 86296).
    """
    pending = {task for task in tasks if not task.done()}
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=_AGAIN_S)
