"""The map that all replicas show, and everybody who follows it."""

import asyncio
from collections.abc import AsyncIterator, Callable

import structlog

from hivemind.servers.common.errors import MeshError
from hivemind.servers.common.looking import keep_looking
from hivemind.servers.orchestrator.cognitive_map import CognitiveMap
from hivemind.servers.orchestrator.ports import Store

_log = structlog.get_logger()


class MapFeed:
    """Follows the shared map. `on_change` is told of each new one."""

    def __init__(self, store: Store, *, poll_s: float, on_change: Callable[[CognitiveMap], None]) -> None:
        self._store, self._poll_s, self._on_change = store, poll_s, on_change
        self._found: CognitiveMap | None = None
        self._changed = asyncio.Condition()

    @property
    def found(self) -> CognitiveMap | None:
        """What was last read; None before the store has answered once."""
        return self._found

    async def get(self) -> CognitiveMap:
        """The map now; what was last read of it if the store does not answer."""
        try:
            found = await self._store.shared_map() or CognitiveMap()
        except MeshError:
            if self._found is None:
                raise
            return self._found
        await self._take(found)
        return found

    async def watch(self) -> AsyncIterator[CognitiveMap]:
        """The map at once, and again with every change."""
        seen: CognitiveMap | None = None
        while True:
            seen = await self._other_than(seen)
            yield seen

    async def run(self) -> None:
        """Looks for changes for ever, and outlives an absent store."""
        await keep_looking(self._look, every_s=self._poll_s)

    async def _look(self) -> None:
        await self._take(await self._store.shared_map() or CognitiveMap())

    async def _other_than(self, seen: CognitiveMap | None) -> CognitiveMap:
        async with self._changed:
            while self._found is None or self._found == seen:
                await self._changed.wait()
            return self._found

    async def _take(self, found: CognitiveMap) -> None:
        if found == self._found:
            return
        async with self._changed:
            self._found = found
            self._on_change(found)
            self._changed.notify_all()
