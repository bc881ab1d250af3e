"""The loop: its steps, their limits, pauses, wishes, and a clock that jumps (FAULTS 10)."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest
from prometheus_client import CollectorRegistry

from hivemind.servers.common.errors import MeshError
from hivemind.servers.common.interceptors import CallPolicy, MeshInterceptor
from hivemind.servers.common.metrics import RpcMetrics
from hivemind.servers.common.redis_client import redis_client
from hivemind.servers.common.tasks import end_tasks
from hivemind.servers.orchestrator.cycle import Result, Token
from hivemind.servers.orchestrator.feed import MapFeed
from hivemind.servers.orchestrator.lease import Lease
from hivemind.servers.orchestrator.loop import Loop
from hivemind.servers.orchestrator.metrics import OrchestratorMetrics
from hivemind.servers.orchestrator.service import OrchestratorService
from hivemind.servers.orchestrator.status import Control
from hivemind.servers.orchestrator.store_redis import RedisStore
from hivemind.v1 import orchestrator_pb2 as pb
from hivemind.v1 import orchestrator_pb2_grpc as rpc
from tests.support.arbiter_rig import eventually, told
from tests.support.redis_process import RedisProcess

Outcome = pb.CycleStep.Outcome


@dataclass
class Scripted:
    """A step that does what a test says; `acted` are the tokens it acted under."""

    name: str
    act: Callable[[], Awaitable[Result]]
    acted: list[int] = field(default_factory=list)

    async def run(self, token: Token) -> Result:
        self.acted.append(token())
        return await self.act()


async def done() -> Result:
    return Result("DONE", "did it", 7)


async def hangs() -> Result:
    await asyncio.Event().wait()
    raise AssertionError


async def fails() -> Result:
    raise MeshError("PEER_UNAVAILABLE", "nobody there")


async def breaks() -> Result:
    raise ZeroDivisionError


@dataclass
class Running:
    """A replica with its client."""

    stub: rpc.OrchestratorServiceStub
    store: RedisStore
    lease: Lease
    registry: CollectorRegistry
    wall: list[float]

    async def status(self) -> pb.OrchestratorStatus:
        return await self.stub.GetStatus(pb.GetStatusRequest())

    async def cycles(self) -> list[pb.Cycle]:
        return list((await self.stub.ListCycles(pb.ListCyclesRequest())).cycles)

    async def cycle(self, *steps: str, key: str = "") -> pb.Cycle:
        return await self.stub.RunCycle(pb.RunCycleRequest(steps=steps, idempotency_key=key), timeout=10)


@asynccontextmanager
async def replica(
    redis: RedisProcess, steps: Sequence[Scripted], *, every_s: float = 3600.0, step_s: float = 5.0, name: str = "one"
) -> AsyncIterator[Running]:
    client = redis_client(redis.url, timeout_s=1.0)
    store = RedisStore(client, kept=5, half_life_s=1.0)
    registry = CollectorRegistry()
    wall = [0.0]
    lease = Lease(store, name, ttl_s=1.0, renew_s=0.2, retry_s=0.1)
    metrics = OrchestratorMetrics(registry)
    loop = Loop(
        lease, store, steps, metrics, every_s=every_s, step_s=step_s, poll_s=0.02, now=lambda: time.time() + wall[0]
    )
    feed = MapFeed(store, poll_s=0.02, on_change=metrics.show)
    server = grpc.aio.server(interceptors=[MeshInterceptor(CallPolicy(None, 20.0, 100), RpcMetrics(registry))])
    service = OrchestratorService(Control(lease, store, poll_s=0.02), store, feed)
    rpc.add_OrchestratorServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    tasks = [asyncio.create_task(run()) for run in (lease.run, loop.run, feed.run)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        running = Running(rpc.OrchestratorServiceStub(channel), store, lease, registry, wall)
        try:
            await eventually(lambda: lease.held or running.store.progress())
            yield running
        finally:
            await end_tasks(*tasks)
            await server.stop(0)
            await client.aclose()


async def test_each_step_has_an_outcome_and_one_that_fails_does_not_stop_the_others(empty_redis: RedisProcess) -> None:
    steps = [
        Scripted("platinum", done), Scripted("map", fails), Scripted("refine", hangs), Scripted("online", breaks),
        Scripted("housekeeping", done),
    ]  # fmt: skip
    async with replica(empty_redis, steps, step_s=0.1) as running:
        cycle = await running.cycle()

        found = {s.name: (Outcome.Name(s.outcome), s.note) for s in cycle.steps}
        assert found == {
            "platinum": ("DONE", "did it"),
            "map": ("FAILED", "PEER_UNAVAILABLE: nobody there"),
            "refine": ("OUT_OF_BUDGET", "its 0.1 s were used up"),
            "online": ("FAILED", "unexpected: ZeroDivisionError"),
            "housekeeping": ("DONE", "did it"),
        }
        assert cycle.steps[0].cost_micros == 7
        assert cycle.fencing_token == 1
        assert [c.id for c in await running.cycles()] == [cycle.id]
        await eventually(lambda: running.registry.get_sample_value("hivemind_cycle_cost_micros_total") == 14)
        labels = {"step": "refine", "outcome": "OUT_OF_BUDGET"}
        assert running.registry.get_sample_value("hivemind_cycle_steps_total", labels) == 1
        assert running.registry.get_sample_value("hivemind_leader") == 1


async def test_cycles_come_by_themselves_and_the_history_is_bounded(empty_redis: RedisProcess) -> None:
    async with replica(empty_redis, [Scripted("map", done)], every_s=0.05) as running:
        seen: set[str] = set()

        async def enough() -> bool:
            seen.update(c.id for c in await running.cycles())
            return len(seen) >= 8

        await eventually(enough)

        assert len(await running.cycles()) == 5
        page = await running.stub.ListCycles(pb.ListCyclesRequest(page_size=2))
        rest = await running.stub.ListCycles(pb.ListCyclesRequest(page_size=2, page_token=page.next_page_token))
        assert not {c.id for c in page.cycles} & {c.id for c in rest.cycles}


async def test_a_pause_cancels_the_step_under_way_within_a_second(empty_redis: RedisProcess) -> None:
    step = Scripted("map", hangs)
    async with replica(empty_redis, [step, Scripted("refine", done)], every_s=0.05, step_s=60.0) as running:

        async def shown() -> bool:
            return (await running.status()).current_step == "map"

        await eventually(shown)
        began = time.monotonic()
        await running.stub.Pause(pb.PauseRequest(reason="a look"))
        (cycle,) = await eventually(running.cycles)
        assert time.monotonic() - began < 1.0

        assert [(s.name, Outcome.Name(s.outcome), s.note) for s in cycle.steps] == [("map", "SKIPPED", "paused")]
        status = await running.status()
        assert (status.paused, status.pause_reason) == (True, "a look")
        assert not status.HasField("next_cycle_time")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await running.cycle()
        assert told(refused.value).reason == "LOOP_PAUSED"
        await running.stub.Resume(pb.ResumeRequest())
        await eventually(lambda: len(step.acted) > 1)


async def test_a_repeated_key_has_one_effect(empty_redis: RedisProcess) -> None:
    step = Scripted("map", done)
    async with replica(empty_redis, [step]) as running:
        first, second = await running.cycle("map", key="k"), await running.cycle("map", key="k")
        assert first == second
        assert len(step.acted) == 1
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await running.cycle("refine", key="k")
        assert told(refused.value).reason == "IDEMPOTENCY_KEY_REUSED"

        await running.stub.Pause(pb.PauseRequest(idempotency_key="p"))
        await running.stub.Resume(pb.ResumeRequest(idempotency_key="r"))
        again = await running.stub.Pause(pb.PauseRequest(idempotency_key="p"))
        assert not again.paused


async def test_an_unknown_step_is_named(empty_redis: RedisProcess) -> None:
    async with replica(empty_redis, []) as running:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await running.cycle("map", "nonsense")

        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert "steps[1]" in (refused.value.details() or "")


async def test_two_that_ask_at_once_are_both_answered(empty_redis: RedisProcess) -> None:
    step = Scripted("map", done)
    async with replica(empty_redis, [step]) as one, replica(empty_redis, [step], name="two") as two:
        first, second = await asyncio.gather(one.cycle(), two.cycle())

        assert first.id != second.id
        assert {first.leader, second.leader} == {"one"}


async def test_without_a_leader_a_wish_is_refused(empty_redis: RedisProcess) -> None:
    async with replica(empty_redis, []) as running:
        running.lease.beat = lambda: asyncio.sleep(60)  # type: ignore[method-assign, assignment, return-value]
        await eventually(lambda: not running.lease.held)

        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await running.cycle()

        assert told(refused.value).reason == "PEER_UNAVAILABLE"
        assert (await running.status()).leader == ""


@pytest.mark.parametrize("jump_s", [3600.0, -3600.0])
async def test_a_clock_that_jumps_an_hour_changes_nothing(empty_redis: RedisProcess, jump_s: float) -> None:
    first, second = Scripted("map", done), Scripted("map", done)
    async with (
        replica(empty_redis, [first], every_s=0.1) as one,
        replica(empty_redis, [second], every_s=0.1, name="two") as two,
    ):
        await eventually(lambda: len(first.acted) >= 2)

        one.wall[0] = two.wall[0] = jump_s
        before, began = len(first.acted), time.monotonic()
        await eventually(lambda: len(first.acted) >= before + 8)
        took_s = time.monotonic() - began

        assert 0.5 < took_s < 5.0
        assert set(first.acted) == {1}
        assert second.acted == []
        assert (await two.status()).leader == "one"


async def test_a_leader_that_loses_its_lease_in_a_step_writes_nothing_of_it(empty_redis: RedisProcess) -> None:
    step = Scripted("map", hangs)
    async with replica(empty_redis, [step], every_s=0.05, step_s=60.0) as running:
        await eventually(lambda: step.acted)

        empty_redis.client.delete("orchestrator:lease")
        empty_redis.client.incr("orchestrator:fence")
        empty_redis.client.set("orchestrator:lease", "2 somebody-else", px=1500)

        await eventually(lambda: not running.lease.held)
        assert await running.cycles() == []
        await eventually(lambda: running.lease.held == 3)
        await eventually(lambda: step.acted[-1] == 3)


async def test_a_watcher_gets_the_map_at_once_and_its_changes(empty_redis: RedisProcess) -> None:
    async with replica(empty_redis, []) as running:
        stream = running.stub.WatchCognitiveMap(pb.WatchCognitiveMapRequest(watcher="router"))
        first = await asyncio.wait_for(stream.read(), 5)
        empty_redis.client.set(
            "orchestrator:map",
            '{"revision":3,"updated":1.0,"ledger_sequence":9,"bad_lines":0,"skills":[{"name":"math","n":2.0,"mean":0.5,'
            '"confidence":0.2,"updated":1.0,"improved_by":["a-v000001"]}]}',
        )
        second = await asyncio.wait_for(stream.read(), 5)
        stream.cancel()

        assert list(first.map.skills) == []
        assert second.map.version.revision == 3
        assert second.map.skills[0].improved_by == ["a-v000001"]
        one = await running.stub.GetCognitiveMap(pb.GetCognitiveMapRequest(domain="law"))
        assert list(one.skills) == []
        labels = {"domain": "math"}
        assert running.registry.get_sample_value("hivemind_skill_confidence", labels) == 0.2


async def test_without_a_store_the_map_is_still_told_and_the_status_is_an_error(
    empty_redis: RedisProcess, tmp_path: Path
) -> None:
    async with replica(empty_redis, []) as running:
        await running.stub.GetCognitiveMap(pb.GetCognitiveMapRequest())
        empty_redis.kill()
        try:
            found = await running.stub.GetCognitiveMap(pb.GetCognitiveMapRequest())
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await running.status()
        finally:
            await asyncio.to_thread(empty_redis.start)

        assert list(found.skills) == []
        assert told(refused.value).reason == "STORE_UNAVAILABLE"
