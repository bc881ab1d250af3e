"""An orchestrator's core in this process: real Redis, real files, scripted peers."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from hivemind.servers.common.errors import MeshError
from hivemind.servers.common.redis_client import redis_client
from hivemind.servers.orchestrator.cognitive_map import CognitiveMap
from hivemind.servers.orchestrator.cycle import Result
from hivemind.servers.orchestrator.lease import Lease
from hivemind.servers.orchestrator.ledger import LedgerReader
from hivemind.servers.orchestrator.map_file import MapFile
from hivemind.servers.orchestrator.map_keeper import MapKeeper
from hivemind.servers.orchestrator.ports import AdapterInfo, Answered, Money, Opinion, Promotion, RoleState
from hivemind.servers.orchestrator.store_redis import RedisStore
from tests.support.redis_process import RedisProcess

HALF_LIFE_S = 14 * 86_400.0
ROLE = "implementer"


@dataclass
class ScriptedRouter:
    """Tells opinions and traffic, and notes nominations."""

    told: list[Opinion] = field(default_factory=list)
    traffic: list[Answered] = field(default_factory=list)
    available: dict[str, int] = field(default_factory=dict)
    nominated: list[tuple[str, int, float, int]] = field(default_factory=list)
    away: bool = False

    async def opinions(self, place: str) -> tuple[Sequence[Opinion], str]:
        if self.away:
            raise MeshError("PEER_UNAVAILABLE", "away")
        begin = int(place or "0")
        found = self.told[begin : begin + 2]
        return found, str(begin + len(found)) if found else place

    async def recent(self) -> Sequence[Answered]:
        return self.traffic

    async def nominate(self, domain: str, count: int, value: float, *, token: int, key: str) -> Sequence[str]:
        self.nominated.append((domain, count, value, token))
        return [f"{domain}-{i}" for i in range(min(count, self.available.get(domain, 0)))]


@dataclass
class ScriptedRegistry:
    """One role; `previews` by adapter."""

    champion: str = ""
    challengers: tuple[str, ...] = ()
    adapters: dict[str, AdapterInfo] = field(default_factory=dict)
    previews: dict[str, Promotion] = field(default_factory=dict)
    promoted_at: list[float] = field(default_factory=list)
    shares: dict[str, float] = field(default_factory=dict)
    changed_at: list[float] = field(default_factory=list)
    did: list[tuple[str, str, int]] = field(default_factory=list)

    async def roles(self) -> Sequence[RoleState]:
        return [RoleState(ROLE, self.champion, "etag", self.challengers, self.shares)]

    async def adapter(self, adapter_id: str) -> AdapterInfo:
        return self.adapters[adapter_id]

    async def newest(self, role: str) -> Sequence[AdapterInfo]:
        return [self.adapters[i] for i in sorted(self.adapters, reverse=True)]

    async def promotions(self, role: str) -> Sequence[float]:
        return self.promoted_at

    async def traffic_changes(self, role: str, adapter_id: str) -> Sequence[float]:
        return self.changed_at

    async def give(self, state: RoleState, adapter_id: str, share: float, *, token: int) -> None:
        self.shares[adapter_id] = share
        self.did.append((f"give {share}", adapter_id, token))

    async def preview(self, role: str, adapter_id: str) -> Promotion:
        return self.previews[adapter_id]

    async def shadow(self, state: RoleState, adapter_id: str, *, token: int) -> None:
        self.did.append(("shadow", adapter_id, token))

    async def promote(self, role: str, promotion: Promotion, *, token: int) -> None:
        self.did.append(("promote", promotion.adapter, token))


@dataclass
class ScriptedGovernor:
    """Money for refinement."""

    money: Money = field(default_factory=lambda: Money(True, None))

    async def refinement(self) -> Money:
        return self.money


def adapter(name: str, state: str = "REGISTERED", **fields: object) -> AdapterInfo:
    given = {"evaluation": (), "first_sequence": 0, "last_sequence": 0, "created": 0.0, **fields}
    return AdapterInfo(name, state, **given)  # type: ignore[arg-type]


@dataclass
class Rig:
    """What a test of the loop works with."""

    store: RedisStore
    lease: Lease
    datasets: Path
    file: Path
    router: ScriptedRouter
    registry: ScriptedRegistry
    keeper: MapKeeper

    def another_keeper(self) -> MapKeeper:
        """As another replica, or this one after a restart, would have it."""
        return MapKeeper(
            LedgerReader(self.datasets), MapFile(self.file, half_life_s=HALF_LIFE_S), self.store, self.router,
            self.registry, learners=lambda: {"courier"}, half_life_s=HALF_LIFE_S, now=lambda: 1e9,
        )  # fmt: skip

    async def mapped(self, keeper: MapKeeper | None = None) -> tuple[CognitiveMap, list[Result]]:
        """One reading and one update, and the map that all replicas see then."""
        keeper = keeper or self.keeper
        results = [await keeper.read_ledger(self.lease.token), await keeper.update(self.lease.token)]
        return await self.store.shared_map() or CognitiveMap(), results


@asynccontextmanager
async def rig(redis: RedisProcess, home: Path) -> AsyncIterator[Rig]:
    client = redis_client(redis.url, timeout_s=1.0)
    store = RedisStore(client, kept=50, half_life_s=HALF_LIFE_S)
    lease = Lease(store, "rig", ttl_s=60.0, renew_s=20.0, retry_s=1.0)
    await lease.beat()
    made = Rig(
        store, lease, home / "datasets", home / "runs" / "cognitive_map.json", ScriptedRouter(), ScriptedRegistry(),
        keeper=None,  # type: ignore[arg-type]
    )  # fmt: skip
    made.keeper = made.another_keeper()
    made.datasets.mkdir(parents=True, exist_ok=True)
    try:
        yield made
    finally:
        await client.aclose()
