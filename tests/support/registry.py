"""An adapter registry in this process, with its client."""

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from prometheus_client import CollectorRegistry

from hivemind.servers.adapter_registry.autopromote import AutopromotePolicy
from hivemind.servers.adapter_registry.base_model import BaseModel, BaseModels
from hivemind.servers.adapter_registry.feed import StateFeed
from hivemind.servers.adapter_registry.guard import Guard
from hivemind.servers.adapter_registry.ports import ReplicaState, ReplicaView
from hivemind.servers.adapter_registry.registration import Registrar
from hivemind.servers.adapter_registry.registry import Policies, Registry
from hivemind.servers.adapter_registry.service import AdapterRegistryService
from hivemind.servers.adapter_registry.store_redis import RedisStore
from hivemind.servers.adapter_registry.versions import Versions
from hivemind.servers.common.interceptors import CallPolicy, MeshInterceptor
from hivemind.servers.common.metrics import RpcMetrics
from hivemind.servers.common.redis_client import redis_client
from hivemind.v1 import adapter_registry_pb2 as pb
from hivemind.v1 import adapter_registry_pb2_grpc as rpc
from tests.support.peft import write_adapter
from tests.support.redis_process import RedisProcess

ROLE = "implementer"


class NoReplicas:
    """Where nobody asks the replicas."""

    def replicas(self, role: str) -> tuple[ReplicaState, ...]:
        return ()


@dataclass
class Rig:
    """A registry with its client. `clock` is what it takes for the time; None: the real one."""

    channel: grpc.aio.Channel
    stub: rpc.AdapterRegistryServiceStub
    home: Path
    base: BaseModel
    feed: StateFeed
    registry: Registry
    registrar: Registrar
    guard: Guard
    time: list[float]
    written: list[int] = field(default_factory=lambda: [0])

    async def register(self, seed: int | None = None, **fields: Any) -> pb.Adapter:
        """A new adapter of the role."""
        self.written[0] += 1
        number = self.written[0] if seed is None else seed
        write_adapter(self.home / "incoming" / f"a{number}", self.base.shapes, seed=number)
        return await self.stub.RegisterAdapter(
            pb.RegisterAdapterRequest(role=ROLE, path=f"incoming/a{number}", **fields)
        )

    async def challenger(self, traffic: float = 0.1, *, shadow: bool = False) -> str:
        """A new adapter that challenges."""
        adapter = await self.register()
        await self.traffic(adapter.id, traffic, shadow=shadow)
        return adapter.id

    async def traffic(self, adapter_id: str, traffic: float, **fields: Any) -> pb.RoleState:
        return await self.stub.SetTraffic(
            pb.SetTrafficRequest(role=ROLE, adapter_id=adapter_id, traffic=traffic, **fields)
        )

    async def champion(self) -> str:
        """A new adapter that is put in office by override."""
        adapter = await self.register()
        await self.promote(adapter.id, override=True, reason="a test wants it")
        return adapter.id

    async def promote(self, adapter_id: str = "", **fields: Any) -> pb.RoleState:
        return await self.stub.PromoteAdapter(pb.PromoteAdapterRequest(role=ROLE, adapter_id=adapter_id, **fields))

    async def preview(self, adapter_id: str = "") -> pb.PreviewPromotionResponse:
        return await self.stub.PreviewPromotion(pb.PreviewPromotionRequest(role=ROLE, adapter_id=adapter_id))

    async def rollback(self, **fields: Any) -> pb.RoleState:
        return await self.stub.RollbackAdapter(pb.RollbackAdapterRequest(role=ROLE, **fields))

    async def state(self) -> pb.RoleState:
        found = await self.stub.GetState(pb.GetStateRequest(role=ROLE))
        return found.roles[0]

    async def events(self) -> list[pb.AdapterEvent]:
        found = await self.stub.ListEvents(pb.ListEventsRequest(role=ROLE))
        return list(found.events)

    async def record(self, *outcomes: pb.Outcome, key: str = "") -> pb.RecordOutcomesResponse:
        return await self.stub.RecordOutcomes(pb.RecordOutcomesRequest(outcomes=outcomes, idempotency_key=key))

    async def judge(self, adapter_id: str, against: str, *, wins: int, losses: int, name: str = "pair") -> None:
        """Pairs that were judged."""
        scores = [1.0] * wins + [0.0] * losses
        await self.record(
            *(
                pb.Outcome(request_id=f"{name}-{i}", role=ROLE, adapter_id=adapter_id, compared_with=against, score=s)
                for i, s in enumerate(scores)
            )
        )

    async def serve(
        self,
        adapter_id: str,
        count: int,
        *,
        failed: int = 0,
        latency_s: float = 0.2,
        name: str = "r",
        unit: bool = False,
    ) -> None:
        """Requests that an adapter answered; the first `failed` of them failed."""
        made = []
        for i in range(count):
            outcome = pb.Outcome(request_id=f"{name}-{i}", role=ROLE, adapter_id=adapter_id, failed=i < failed)
            outcome.latency.FromMicroseconds(round(latency_s * 1e6))
            outcome.cost_micros = 100
            outcome.unit = f"{name}-{i}" if unit else ""
            made.append(outcome)
        for begin in range(0, count, 1000):
            await self.record(*made[begin : begin + 1000])


class running_registry:
    """Runs a registry in this process. `started` is the time it sees at first; 0: the real time."""

    def __init__(
        self,
        redis: RedisProcess,
        home: Path,
        base: BaseModel,
        *,
        policies: Policies | None = None,
        replicas: ReplicaView | None = None,
        now: float = 1_800_000_000.0,
    ) -> None:
        self._redis = redis_client(redis.url, timeout_s=1.0)
        self._home, self._base, self._replicas = home, base, replicas or NoReplicas()
        self._policies = policies or Policies(autopromote=AutopromotePolicy())
        self._time = [now]

    async def __aenter__(self) -> Rig:
        def clock() -> float:
            return self._time[0]

        store, versions = RedisStore(self._redis, clock=clock), Versions(self._home / "adapters")
        feed = StateFeed(store, self._replicas, (ROLE,), poll_s=0.05, clock=clock)
        registry = Registry(store, feed, versions, self._policies, clock=clock)
        roots = (self._home, self._home / "adapters")
        registrar = Registrar(store, versions, BaseModels({"": lambda: self._base}), roots, clock=clock)
        guard = Guard(feed, registry, every_s=0.05, clock=clock)
        policy = CallPolicy(None, 10.0, 1000)
        self._server = grpc.aio.server(interceptors=[MeshInterceptor(policy, RpcMetrics(CollectorRegistry()))])
        rpc.add_AdapterRegistryServiceServicer_to_server(
            AdapterRegistryService(feed, registry, registrar), self._server
        )
        port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()
        self._channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
        self._task = asyncio.create_task(feed.run())
        stub = rpc.AdapterRegistryServiceStub(self._channel)
        return Rig(self._channel, stub, self._home, self._base, feed, registry, registrar, guard, self._time)

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await self._channel.close()
        await self._server.stop(None)
        await self._redis.aclose()


async def refused(call: Any) -> error_details_pb2.ErrorInfo:
    """The ErrorInfo of a call that must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return info_of(error.value)


async def reason_or_champion(call: Any) -> str:
    """How a change of a role ended."""
    try:
        state: pb.RoleState = await call
    except grpc.aio.AioRpcError as error:
        return info_of(error).reason
    return state.champion


def info_of(error: Any) -> error_details_pb2.ErrorInfo:
    """The ErrorInfo of an error."""
    status = rpc_status.from_call(error)
    assert status is not None, error
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return info
