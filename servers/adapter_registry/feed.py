"""The state as it is now, and everybody who follows it."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import structlog

from hivemind.servers.adapter_registry.adapters import AdapterRecord
from hivemind.servers.adapter_registry.evidence import Evidence
from hivemind.servers.adapter_registry.ports import ReplicaState, ReplicaView, Store
from hivemind.servers.adapter_registry.roles import Role
from hivemind.servers.common.errors import MeshError
from hivemind.servers.common.looking import keep_looking

_log = structlog.get_logger()

ADAPTERS_TOLD: Final = 1_000

Replicas = Mapping[str, Sequence[ReplicaState]]


@dataclass(frozen=True, slots=True)
class RoleView:
    """A role with what is known of its challengers and its replicas."""

    role: Role
    evidence: Mapping[str, Evidence] = field(default_factory=dict)
    replicas: Sequence[ReplicaState] = ()
    adapters: Sequence[str] = ()
    """Every adapter registered for the role, newest first, at most ADAPTERS_TOLD."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All roles at a revision, by name. `time`: when it was read, Unix seconds; `records`: the adapters that replicas
    are to hold; `fresh`: per role its newest adapter where that was registered and not tried yet."""

    revision: int
    time: float
    roles: Mapping[str, RoleView]
    records: Mapping[str, AdapterRecord] = field(default_factory=dict)
    fresh: Mapping[str, str] = field(default_factory=dict)

    def to_hold(self, role: str) -> tuple[str, ...]:
        """What each replica of a role must hold: champion, challengers, shadows, and the newest version, so that it is
        there when it is asked for by name or given traffic."""
        return tuple(filter(None, (*self.roles[role].role.named, self.fresh.get(role, ""))))


class StateFeed:
    """Reads and follows the state. `served`: the roles that the catalogue names, there without any adapter too."""

    def __init__(
        self, store: Store, replicas: ReplicaView, served: Sequence[str], *, poll_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self._clock = clock
        self._store, self._replicas, self._served, self._poll_s = store, replicas, served, poll_s
        self._snapshot: Snapshot | None = None
        self._seen: Replicas = {}
        self._changed, self._due = asyncio.Condition(), asyncio.Event()

    @property
    def snapshot(self) -> Snapshot | None:
        """What was last read; None before the store has answered once."""
        return self._snapshot

    async def get(self) -> Snapshot:
        """The state now, evidence included; what was last read of it if the store does not answer."""
        try:
            snapshot = await self._load()
        except MeshError:
            if self._snapshot is None:
                raise
            return self._snapshot
        await self._take(snapshot)
        return snapshot

    async def role(self, name: str) -> Role | None:
        """A role as the store has it now; None for one that nobody serves and no adapter was registered for."""
        _, roles = await self._store.load()
        return roles.get(name) or (Role(name) if name in self._served else None)

    async def watch(self) -> AsyncIterator[Snapshot]:
        """The snapshot at once, and again with every change. A slow watcher gets the latest, never an older one."""
        seen = -1
        while True:
            snapshot = await self._newer_than(seen)
            seen = snapshot.revision
            yield snapshot

    async def run(self) -> None:
        """Looks for changes by other registries and of replicas for ever, and outlives an absent store."""
        await keep_looking(self._look, every_s=self._poll_s, sooner=self._due)

    def serve(self, served: Sequence[str]) -> None:
        """Takes over which roles the catalogue names. A new one is told with the first news of its replicas."""
        self._served = served
        self.look_now()

    def look_now(self) -> None:
        """Has `run` look at once: replicas have changed."""
        self._due.set()

    async def _newer_than(self, seen: int) -> Snapshot:
        async with self._changed:
            while self._snapshot is None or self._snapshot.revision <= seen:
                await self._changed.wait()
            return self._snapshot

    async def _look(self) -> None:
        known = self._snapshot
        names = sorted({*known.roles, *self._served}) if known is not None else ()
        now = {name: held for name in names if (held := tuple(self._replicas.replicas(name)))}
        if now != self._seen:
            await self._store.touch()  # what replicas hold is no change of a role, and yet watchers must hear of it
            self._seen = now
        if known is None or await self._store.revision() != known.revision:
            await self._take(await self._load())

    async def _load(self) -> Snapshot:
        revision, roles = await self._store.load()
        everyone = {name: roles.get(name) or Role(name) for name in sorted({*roles, *self._served})}
        views = {name: await self._view(role) for name, role in everyone.items()}
        newest = {name: view.adapters[0] for name, view in views.items() if view.adapters}
        named = [i for role in everyone.values() for i in role.named]
        found = await self._store.adapters(list({*named, *newest.values()}))
        fresh = {n: i for n, i in newest.items() if i in found and not found[i][1] and i not in everyone[n].named}
        wanted = {*named, *fresh.values()}
        records = {i: record for i, (record, _) in found.items() if i in wanted}
        return Snapshot(revision, self._clock(), views, records, fresh)

    async def _view(self, role: Role) -> RoleView:
        challengers = [c.adapter_id for c in role.challenges]
        evidence = await self._store.evidence(role, challengers) if challengers else {}
        newest = await self._store.newest_ids(role.name, 0, ADAPTERS_TOLD)
        return RoleView(role, evidence, tuple(self._replicas.replicas(role.name)), tuple(newest))

    async def _take(self, snapshot: Snapshot) -> None:
        async with self._changed:
            known = self._snapshot
            if known is None or snapshot.revision >= known.revision:
                self._snapshot = snapshot
            self._changed.notify_all()
