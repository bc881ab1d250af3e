"""One piece of work at a time for a key: who asks for it meanwhile waits for the same answer."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from hivemind.servers.common.errors import MeshError
from hivemind.servers.common.tasks import end_tasks

T = TypeVar("T")


@dataclass(slots=True)
class _Running(Generic[T]):
    task: asyncio.Task[T]
    fingerprint: str
    waiting: int = 0


class Once(Generic[T]):
    """Work under way, by key."""

    def __init__(self) -> None:
        self._running: dict[tuple[str, str], _Running[T]] = {}

    async def do(self, key: tuple[str, str], fingerprint: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The answer of `work`, begun here or by whom asked first; it is cancelled once nobody waits for it any more.

        MeshError IDEMPOTENCY_KEY_REUSED where the one under way has another fingerprint.
        """
        running = self._running.get(key)
        if running is None:
            running = self._running[key] = _Running(asyncio.create_task(work()), fingerprint)
            running.task.add_done_callback(partial(self._forget, key))
        elif running.fingerprint != fingerprint:
            raise MeshError(
                "IDEMPOTENCY_KEY_REUSED", "this idempotency key is in use for another request; take a new one"
            )
        running.waiting += 1
        try:
            return await asyncio.shield(running.task)
        finally:
            running.waiting -= 1
            if running.waiting == 0 and not running.task.done():
                self._forget(key, running.task)
                await end_tasks(running.task)

    def _forget(self, key: tuple[str, str], task: asyncio.Task[T]) -> None:
        running = self._running.get(key)
        if running is not None and running.task is task:
            del self._running[key]
