"""An Arbiter's platinum side in this process, with real files, a real Redis and real stubs."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from hivemind.servers.arbiter.platinum import Platinum, build_platinum
from hivemind.servers.arbiter.refining import build_refining
from hivemind.servers.arbiter.service import ArbiterService
from hivemind.servers.arbiter.settings import ArbiterSettings
from hivemind.servers.common.catalogue import Catalogue
from hivemind.servers.common.interceptors import CallPolicy, MeshInterceptor
from hivemind.servers.common.metrics import RpcMetrics
from hivemind.servers.common.redis_client import redis_client
from hivemind.servers.common.tasks import end_tasks
from hivemind.v1 import arbiter_pb2 as pb
from hivemind.v1 import arbiter_pb2_grpc as rpc
from tests.support.redis_process import RedisProcess

WITHIN_S = 20.0


class NoQueue:
    async def counts(self) -> tuple[int, int]:
        return 7, 3


@dataclass
class Rig:
    """A running server and its client."""

    stub: rpc.ArbiterServiceStub
    platinum: Platinum
    redis: Redis
    registry: CollectorRegistry
    port: int

    def stream(self, consumer: str = "one", group: str = "g", in_flight: int = 0) -> "Consumer":
        request = pb.StreamPlatinumRequest(group=group, consumer=consumer, max_in_flight=in_flight)
        return Consumer(self, group, self.stub.StreamPlatinum(request))

    async def ack(self, *sequences: int, group: str = "g") -> int:
        answer = await self.stub.AckPlatinum(pb.AckPlatinumRequest(group=group, sequences=sequences))
        return answer.acknowledged_sequence

    def metric(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)


@dataclass
class Consumer:
    """One open stream."""

    rig: Rig
    group: str
    call: Any

    async def next(self) -> pb.PlatinumExample:
        """The next example; heartbeats are passed over."""
        while True:
            message = await asyncio.wait_for(self.call.read(), WITHIN_S)
            if message is grpc.aio.EOF:
                await self.call  # raises what ended it
                raise AssertionError("the stream ended")
            if message.WhichOneof("event") == "example":
                found: pb.PlatinumExample = message.example
                return found

    async def sequences(self, count: int, *, ack: bool = False) -> list[int]:
        found = []
        for _ in range(count):
            example = await self.next()
            found.append(example.sequence)
            if ack:
                await self.rig.ack(example.sequence, group=self.group)
        return found

    async def beat(self) -> pb.Heartbeat:
        """The next message, which must be a sign of life."""
        message = await asyncio.wait_for(self.call.read(), WITHIN_S)
        assert message is not grpc.aio.EOF
        assert message.WhichOneof("event") == "heartbeat", message
        beat: pb.Heartbeat = message.heartbeat
        return beat

    async def quiet(self, beats: int = 3) -> bool:
        """Whether nothing but signs of life comes for a while."""
        for _ in range(beats):
            await self.beat()
        return True

    def leave(self) -> None:
        self.call.cancel()


@asynccontextmanager
async def arbiter(folder: Path, redis: RedisProcess, *, port: int = 0, **settings: Any) -> AsyncIterator[Rig]:
    """Runs a server on a ledger's folder."""
    given = {"datasets": folder, "platinum_heartbeat_s": 0.1, "platinum_poll_s": 0.02, "ledger_poll_s": 0.02}
    made = ArbiterSettings(**{**given, **settings})
    client = redis_client(redis.url, timeout_s=1.0)
    registry = CollectorRegistry()
    platinum = build_platinum(made, client, registry)
    server = grpc.aio.server(interceptors=[MeshInterceptor(CallPolicy(None, 10.0, 100), RpcMetrics(registry))])
    refining = build_refining(made, Catalogue({}), client, registry, platinum.ledger)
    service = ArbiterService(
        platinum.ledger, platinum.streams, NoQueue(), refining.refinery, refining.nominations, deadline_s=10.0
    )
    rpc.add_ArbiterServiceServicer_to_server(service, server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    loops = [asyncio.create_task(platinum.ledger.follow()), asyncio.create_task(platinum.streams.watch_lag(0.05))]
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
    with suppress(Exception):
        await platinum.ledger.refresh()
    try:
        yield Rig(rpc.ArbiterServiceStub(channel), platinum, client, registry, port)
    finally:
        await channel.close()
        await server.stop(None)
        await end_tasks(*loops)
        await refining.close()
        await platinum.ledger.close()
        await client.aclose()


async def eventually(condition: Any, what: str, within_s: float = WITHIN_S) -> Any:
    """What `condition` answers once that is true; it may be a coroutine function."""
    end = time.monotonic() + within_s
    while True:
        found = condition()
        found = await found if asyncio.iscoroutine(found) else found
        if found:
            return found
        assert time.monotonic() < end, f"{what} did not come true within {within_s} s"
        await asyncio.sleep(0.02)


async def reason_of(call: Any) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    status = rpc_status.from_call(error.value)
    assert status is not None
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return info.reason


def lines_on_disk(folder: Path) -> list[dict[str, Any]]:
    """Every line of the ledger's files, oldest first, read with nothing but json."""
    names = [*sorted(p.name for p in folder.glob("training_metadata-*.jsonl")), "training_metadata.jsonl"]
    return [json.loads(line) for name in names for line in (folder / name).read_text().splitlines()]
