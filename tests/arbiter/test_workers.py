"""The queue is worked off by whole servers: outages, the Governor's switch, death and money."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import grpc
import pytest

from hivemind.v1 import common_pb2 as common
from hivemind.v1 import governor_pb2 as governor_pb
from tests.support.arbiter_rig import DOWN, ArbiterRig, candidate, eventually, running_arbiter, told
from tests.support.redis_process import RedisProcess
from tests.support.scripted_oracle import REFINED


async def stored(rig: ArbiterRig, count: int, within_s: float = 15.0) -> None:
    await eventually(lambda: len(rig.lines()) == count, within_s=within_s, what=f"{count} examples are stored")


async def test_candidates_become_examples_the_most_valuable_first(tmp_path: Path, empty_redis: RedisProcess) -> None:
    async with running_arbiter(tmp_path, empty_redis, refinement_concurrency=1, oracle="o_held") as rig:
        await rig.submit(candidate(0))
        await eventually(lambda: rig.models.seen, what="the first is worked on")
        assert await rig.submit(candidate(1, value=0.1), candidate(2, value=0.9), candidate(2)) == (2, 1, 0)
        rig.models.gate.set()

        await stored(rig, 3)
        assert [line["request_id"] for line in rig.lines()] == ["request-0", "request-2", "request-1"]
        assert rig.lines()[0]["origin"] == "traffic"
        assert rig.lines()[0]["final_platinum_answer"] == REFINED

        async def empty() -> bool:
            return await rig.metric("hivemind_refinement_queue") == 0

        await eventually(empty, what="the queue is shown as empty")


async def test_texts_are_redacted_before_they_enter_redis(tmp_path: Path, empty_redis: RedisProcess) -> None:
    async with running_arbiter(tmp_path, empty_redis, oracle=DOWN, arbiter=DOWN) as rig:
        await rig.configure(enabled=False)
        await rig.submit(candidate(1, draft="Ask bob@corp.example.", alternatives=["Or jim@corp.example."]))

        (body,) = empty_redis.client.hvals("arbiter:queue:body")
        assert b"corp.example" not in body
        assert b"[EMAIL]" in body


async def test_candidates_wait_while_the_models_are_down_and_are_refined_when_they_are_back(
    tmp_path: Path, empty_redis: RedisProcess
) -> None:
    async with running_arbiter(tmp_path, empty_redis, oracle="o_500_six_times", arbiter="") as rig:
        await rig.submit(candidate(1), candidate(2))
        await eventually(lambda: len(rig.models.seen) >= 4, what="the Oracle was tried twice")
        assert rig.lines() == []

        await stored(rig, 2, within_s=30.0)
        assert await rig.metric("hivemind_candidates_dropped_total") == 0


async def test_a_judged_candidate_that_was_not_accepted_is_not_tried_again(
    tmp_path: Path, empty_redis: RedisProcess
) -> None:
    async with running_arbiter(tmp_path, empty_redis, oracle="o_low", arbiter="o_low") as rig:
        await rig.submit(candidate(1))

        await eventually(lambda: not empty_redis.client.exists("arbiter:queue:body"), what="the queue is empty")
        assert rig.asked() == ["o_low"] * 2
        assert rig.lines() == []


async def test_the_switch_stops_refinement_within_a_second_and_keeps_the_candidates(
    tmp_path: Path, empty_redis: RedisProcess
) -> None:
    async with running_arbiter(tmp_path, empty_redis, oracle="o_held", refinement_concurrency=2) as rig:
        await rig.submit(*(candidate(i) for i in range(6)))
        await eventually(lambda: len(rig.models.seen) == 2, what="both workers ask the Oracle")

        await rig.configure(enabled=False)
        waiting = lambda: empty_redis.client.zcard("arbiter:queue:ready") == 6  # noqa: E731
        await eventually(waiting, within_s=1.0, what="all six wait again")
        rig.models.gate.set()
        assert await rig.submit(candidate(6)) == (1, 0, 0)
        assert rig.lines() == []

        await rig.configure(enabled=True)
        await stored(rig, 7)
        assert len({line["request_id"] for line in rig.lines()}) == 7


async def test_an_exhausted_budget_leaves_candidates_in_the_queue(tmp_path: Path, empty_redis: RedisProcess) -> None:
    async with running_arbiter(tmp_path, empty_redis) as rig:
        budget = governor_pb.Budget(tenant="*", period=common.DAY, limit_micros=10, purpose=common.REFINEMENT)
        await rig.configure(budgets=[budget])

        async def exhausted() -> bool:
            try:
                await rig.refine()
            except grpc.aio.AioRpcError as error:
                return told(error).reason == "BUDGET_EXHAUSTED"
            return False

        await eventually(exhausted, what="the budget is exhausted")
        before = len(rig.lines())
        await rig.submit(candidate(1))
        await eventually(lambda: empty_redis.client.zcard("arbiter:queue:later") == 1, what="it waits for money")
        assert len(rig.lines()) == before


async def test_a_full_queue_drops_and_counts(tmp_path: Path, empty_redis: RedisProcess) -> None:
    async with running_arbiter(tmp_path, empty_redis, queue_bound=8, queue_tenant_share=0.5) as rig:
        await rig.configure(enabled=False)
        await rig.submit(*(candidate(i, value=0.5) for i in range(6)))

        assert empty_redis.client.zcard("arbiter:queue:all") == 4
        assert await rig.metric("hivemind_candidates_dropped_total") == 2


async def test_a_lost_redis_is_found_again(tmp_path: Path, empty_redis: RedisProcess) -> None:
    async with running_arbiter(tmp_path, empty_redis, oracle="o_good") as rig:
        empty_redis.client.bgrewriteaof()
        await asyncio.to_thread(empty_redis.kill)
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await rig.submit(candidate(1))
        assert told(error.value).reason == "STORE_UNAVAILABLE"

        await asyncio.to_thread(empty_redis.start)
        await eventually(lambda: _submitted(rig), what="the queue takes candidates again")
        await stored(rig, 1)


async def _submitted(rig: ArbiterRig) -> bool:
    try:
        return sum(await rig.submit(candidate(1))) == 1
    except grpc.aio.AioRpcError:
        return False


async def test_a_worker_that_was_killed_loses_nothing_and_stores_nothing_twice(
    tmp_path: Path, empty_redis: RedisProcess
) -> None:
    """A second Arbiter, a process of its own on the same ledger and queue, is killed while it works."""
    fast = {"refinement_lease_s": 1.0, "refinement_concurrency": 4}
    async with running_arbiter(tmp_path, empty_redis, oracle="o_held", **fast) as rig:
        await rig.configure(enabled=False)
        await rig.submit(*(candidate(i) for i in range(12)))
        other = await _another(rig, empty_redis)
        await rig.configure(enabled=True)
        await eventually(lambda: len(rig.models.seen) >= 8, within_s=30.0, what="both have candidates in hand")
        os.kill(other.pid, signal.SIGKILL)
        await other.wait()
        rig.models.gate.set()

        await stored(rig, 12)
        await eventually(lambda: not empty_redis.client.exists("arbiter:queue:body"), what="the queue is empty")
        assert sorted(line["request_id"] for line in rig.lines()) == sorted(f"request-{i}" for i in range(12))


async def _another(rig: ArbiterRig, redis: RedisProcess) -> asyncio.subprocess.Process:
    home = rig.datasets.parent
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("HIVEMIND_", "OPENAI_", "DEEPSEEK_", "REDIS_"))}
    settings = {
        "HIVEMIND_HOME": str(home), "HIVEMIND_CONFIG": str(home / "hivemind.toml"), "REDIS_URL": redis.url,
        "HIVEMIND_GRPC_PORT": "0", "HIVEMIND_METRICS_PORT": "0", "HIVEMIND_GOVERNOR_ADDRESS": rig.governor_address,
        "HIVEMIND_REFINEMENT_LEASE_S": "1", "HIVEMIND_REFINEMENTS_PER_MINUTE": "0",
    }  # fmt: skip
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "hivemind.servers.arbiter", env={**clean, **settings}, stdout=asyncio.subprocess.DEVNULL
    )
