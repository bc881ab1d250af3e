"""The configuration in force, and everybody who follows it."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Final

import structlog

from hivemind.servers.common.errors import MeshError
from hivemind.servers.common.looking import keep_looking
from hivemind.servers.governor.config import Config, Patch, merged
from hivemind.servers.governor.ports import Store

_log = structlog.get_logger()

_TRIES: Final = 20


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a watcher is told."""

    config: Config
    router_replicas: int


class ConfigFeed:
    """Reads, changes and follows the configuration. `seed` is what an empty store begins with."""

    def __init__(self, store: Store, seed: Config, *, poll_s: float, clock: Callable[[], float] = time.time) -> None:
        self._store, self._seed, self._poll_s, self._clock = store, seed, poll_s, clock
        self._snapshot: Snapshot | None = None
        self._changed = asyncio.Condition()
        self._routers: set[str] = set()

    @property
    def snapshot(self) -> Snapshot | None:
        """What was last read; None before the store has answered once."""
        return self._snapshot

    async def get(self) -> Config:
        """The configuration; what was last read of it if the store does not answer."""
        try:
            config = await self._load()
        except MeshError:
            if self._snapshot is None:
                raise
            return self._snapshot.config
        await self._take(config)
        return config

    async def change(
        self, patch: Patch, *, etag: str, idempotency_key: str, fingerprint: str, actor: str, request_id: str
    ) -> Config:
        """Merges a patch; ETAG_MISMATCH if `etag` is not the current one."""
        for _ in range(_TRIES):
            old = await self._load()
            if etag and etag != old.etag:
                first = await self._store.repeated(idempotency_key, fingerprint) if idempotency_key else None
                if first is None:
                    raise _mismatch(old.etag, etag)
                return first  # the etag has passed because this very request was carried out before
            new = merged(old, patch, now=self._clock(), actor=actor, request_id=request_id)
            saved = await self._store.save(old, new, idempotency_key=idempotency_key, fingerprint=fingerprint)
            if saved is not None:
                await self._take(saved)
                return saved
        raise MeshError("STORE_UNAVAILABLE", "too many changes at the same time; retry", retry_after_s=1.0)

    async def watch(self, watcher: str) -> AsyncIterator[Snapshot]:
        """The snapshot at once, and again with every change."""
        name = uuid.uuid4().hex
        if watcher == "router":
            self._routers.add(name)
        seen: Snapshot | None = None
        try:
            while True:
                seen = await self._newer_than(seen)
                yield seen
        finally:
            self._routers.discard(name)

    async def _newer_than(self, seen: Snapshot | None) -> Snapshot:
        async with self._changed:
            while self._snapshot is None or self._snapshot == seen:
                await self._changed.wait()
            return self._snapshot

    async def run(self) -> None:
        """Looks for changes by other replicas for ever, and outlives an absent store."""
        await keep_looking(self._look, every_s=self._poll_s)

    async def _look(self) -> None:
        revision, routers = await self._store.beat(sorted(self._routers))
        known = self._snapshot
        if known is None or str(known.config.revision) != revision:
            await self._take(await self._load(), routers=routers)
        elif known.router_replicas != routers:
            await self._take(known.config, routers=routers)

    async def _load(self) -> Config:
        config = await self._store.load()
        if config is not None:
            return config
        await self._store.save(None, self._seed, idempotency_key="", fingerprint="")
        return await self._store.load() or self._seed

    async def _take(self, config: Config, *, routers: int | None = None) -> None:
        known = self._snapshot
        if known is not None and config.revision < known.config.revision and routers is None:
            return
        count = known.router_replicas if routers is None and known is not None else (routers or 0)
        async with self._changed:
            self._snapshot = Snapshot(config, count)
            self._changed.notify_all()


def _mismatch(current: str, given: str) -> MeshError:
    message = f"the configuration is at etag {current}, not {given}; read it again and retry"
    return MeshError("ETAG_MISMATCH", message, metadata={"etag": current})
