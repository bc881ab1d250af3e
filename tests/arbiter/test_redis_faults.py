"""FAULTS 7: a Redis that is slow, half-open, full or read-only. Bounded waits, clear errors, healed by itself."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from tests.support.arbiter_rig import ArbiterRig, candidate, running_arbiter, told
from tests.support.redis_process import RedisProcess
from tests.support.tcp_proxy import TcpProxy, tcp_proxy

BOUND_S = 8.0
"""Far above the time-out of a call of Redis (0.5 s, tried twice), far below a hang."""


@pytest.fixture
async def proxy(empty_redis: RedisProcess) -> AsyncIterator[TcpProxy]:
    async with tcp_proxy(empty_redis.port) as opened:
        yield opened


@pytest.fixture
async def rig(tmp_path: Path, empty_redis: RedisProcess, proxy: TcpProxy) -> AsyncIterator[ArbiterRig]:
    """Only the Arbiter reaches Redis through the proxy: the Governor keeps its own way to it."""
    fast = {"REDIS_URL": proxy.url, "redis_timeout_s": 0.5, "refinement_concurrency": 1}
    async with running_arbiter(tmp_path, empty_redis, **fast) as running:
        await running.configure(enabled=False)  # the queue alone is looked at: nobody works it off
        yield running


async def refused(rig: ArbiterRig, number: int) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        async with asyncio.timeout(BOUND_S):
            await rig.submit(candidate(number))
    return error.value.code(), told(error.value).reason


async def test_a_slow_redis_delays_and_nothing_piles_up(rig: ArbiterRig, proxy: TcpProxy) -> None:
    proxy.delay_s = 0.1
    async with asyncio.timeout(3 * BOUND_S):
        answers = await asyncio.gather(*(rig.submit(candidate(i)) for i in range(20)))

    assert answers == [(1, 0, 0)] * 20


async def test_a_half_open_redis_is_an_error_in_time_and_refinement_goes_on(rig: ArbiterRig, proxy: TcpProxy) -> None:
    await rig.submit(candidate(0))
    proxy.mute = True
    refusals = await asyncio.gather(*(refused(rig, i) for i in range(1, 9)))
    await rig.configure(enabled=True)
    example = await rig.refine()
    await rig.configure(enabled=False)
    proxy.mute = False
    async with asyncio.timeout(3 * BOUND_S):
        while True:
            try:
                healed = await rig.submit(candidate(99))
                break
            except grpc.aio.AioRpcError:
                continue

    assert set(refusals) == {(grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")}
    assert example.id in [line["id"] for line in rig.lines()]
    assert healed[0] + healed[1] == 1


async def test_a_full_redis_is_said_to_be_full_and_takes_candidates_again(
    rig: ArbiterRig, empty_redis: RedisProcess
) -> None:
    empty_redis.client.config_set("maxmemory", 1)
    try:
        full = await refused(rig, 1)
    finally:
        empty_redis.client.config_set("maxmemory", 0)

    assert full == (grpc.StatusCode.RESOURCE_EXHAUSTED, "STORE_FULL")
    assert await rig.submit(candidate(1)) == (1, 0, 0)


async def test_a_read_only_replica_is_an_error_and_its_promotion_heals(
    rig: ArbiterRig, empty_redis: RedisProcess
) -> None:
    empty_redis.client.execute_command("REPLICAOF", "127.0.0.1", "1")
    try:
        read_only = await refused(rig, 1)
    finally:
        empty_redis.client.execute_command("REPLICAOF", "NO", "ONE")

    assert read_only == (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")
    assert await rig.submit(candidate(1)) == (1, 0, 0)
