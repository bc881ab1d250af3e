"""The lease: one leader at a time, by tokens that only grow."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from hivemind.servers.common.errors import MeshError
from hivemind.servers.common.redis_client import redis_client
from hivemind.servers.orchestrator.cycle import Cycle
from hivemind.servers.orchestrator.lease import Holding, Lease, steady
from hivemind.servers.orchestrator.store_redis import RedisStore
from tests.support.arbiter_rig import eventually
from tests.support.redis_process import RedisProcess

TTL_S = 0.5


class Time:
    """A steady clock that can be moved on, as it is for a process that was paused."""

    def __init__(self) -> None:
        self.paused_s = 0.0

    def __call__(self) -> float:
        return steady() + self.paused_s


@pytest.fixture
async def redis(empty_redis: RedisProcess) -> AsyncIterator[Redis]:
    client = redis_client(empty_redis.url, timeout_s=1.0)
    yield client
    await client.aclose()


@pytest.fixture
def store(redis: Redis) -> RedisStore:
    return RedisStore(redis, kept=10, half_life_s=86_400.0)


def lease(store: RedisStore, name: str, clock: Time | None = None, ttl_s: float = TTL_S) -> Lease:
    return Lease(store, name, ttl_s=ttl_s, renew_s=0.1, retry_s=0.1, clock=clock or steady)


async def test_the_first_leads_and_the_second_waits(store: RedisStore) -> None:
    first, second = lease(store, "first"), lease(store, "second")

    assert await first.beat()
    assert not await second.beat()
    assert first.token() == 1
    with pytest.raises(MeshError) as refused:
        second.token()
    assert refused.value.reason == "STALE_FENCING_TOKEN"


async def test_a_renewal_keeps_the_token(store: RedisStore) -> None:
    first = lease(store, "first")
    await first.beat()

    assert await first.beat()
    assert first.token() == 1


async def test_after_its_end_another_leads_with_a_higher_token(store: RedisStore) -> None:
    first, second = lease(store, "first"), lease(store, "second")
    await first.beat()

    await eventually(second.beat, within_s=TTL_S + 2)

    assert second.token() == 2
    assert first.held == 0
    assert not await first.beat()


async def test_a_lease_that_is_given_up_is_taken_at_once(store: RedisStore) -> None:
    first, second = lease(store, "first", ttl_s=60), lease(store, "second", ttl_s=60)
    await first.beat()

    await first.release()

    assert first.held == 0
    assert await second.beat()
    assert not await first.beat()


async def test_a_leader_does_not_give_up_what_another_has(store: RedisStore) -> None:
    first, second = lease(store, "first", ttl_s=60), lease(store, "second", ttl_s=60)
    await first.beat()

    await second.release()

    assert not await second.beat()


async def test_a_leader_that_was_paused_knows_before_it_asks(store: RedisStore) -> None:
    clock = Time()
    paused = lease(store, "paused", clock, ttl_s=15)
    await paused.beat()

    clock.paused_s = 15.0

    assert paused.held == 0


async def test_when_another_leads_the_first_no_longer_believes_that_it_does(
    empty_redis: RedisProcess, store: RedisStore
) -> None:
    for round_number in range(5):
        first, second = lease(store, f"first-{round_number}", ttl_s=0.1), lease(store, f"second-{round_number}")
        await eventually(first.beat)

        await eventually(second.beat)

        assert first.held == 0
        empty_redis.client.delete("orchestrator:lease")


async def test_of_many_that_ask_at_once_one_leads(store: RedisStore) -> None:
    crowd = [lease(store, f"replica-{i}", ttl_s=60) for i in range(20)]

    led = await asyncio.gather(*(one.beat() for one in crowd))

    assert sum(led) == 1


async def test_writes_under_an_older_token_are_refused(store: RedisStore) -> None:
    first, second = lease(store, "first"), lease(store, "second")
    await first.beat()
    old = Cycle("1", 0.0, "first", first.token())
    await eventually(second.beat, within_s=TTL_S + 2)
    new = Cycle("2", 0.0, "second", second.token())
    await store.record(new, None)

    with pytest.raises(MeshError) as refused:
        await store.record(old, None)
    with pytest.raises(MeshError):
        await store.show(old.token, "map", 0.0)

    assert refused.value.reason == "STALE_FENCING_TOKEN"
    assert refused.value.metadata == {"newest_token": "2"}
    assert [c.id for c in (await store.cycles(10))[0]] == ["2"]


async def test_an_older_token_is_refused_even_before_the_newer_has_written(store: RedisStore) -> None:
    first, second = lease(store, "first"), lease(store, "second")
    await first.beat()
    token = first.token()
    await eventually(second.beat, within_s=TTL_S + 2)

    with pytest.raises(MeshError) as refused:
        await store.record(Cycle("1", 0.0, "first", token), None)

    assert refused.value.reason == "STALE_FENCING_TOKEN"


async def test_a_lost_store_ends_leadership_and_it_comes_back_by_itself(
    empty_redis: RedisProcess, store: RedisStore, tmp_path: Path
) -> None:
    mine = lease(store, "mine")
    task = asyncio.create_task(mine.run())
    try:
        await eventually(lambda: mine.held)
        empty_redis.kill()
        await eventually(lambda: not mine.held, within_s=TTL_S + 2)
        await asyncio.to_thread(empty_redis.start)
        await eventually(lambda: mine.held, within_s=TTL_S + 3)
    finally:
        task.cancel()


class SlowStore:
    """A lease that ends by a clock of its own; questions and answers travel for a while."""

    def __init__(self) -> None:
        self.now, self.tokens = 0.0, [0]
        self.there_s = self.back_s = 0.0
        self._leader, self._until = "", float("-inf")

    async def take(self, name: str, ttl_s: float) -> Holding:
        self.now += self.there_s
        if self.now >= self._until:
            self.tokens.append(self.tokens[-1] + 1)
            self._leader = name
        if self._leader == name:
            self._until = self.now + ttl_s
        self.now += self.back_s
        return Holding(self._leader, self.tokens[-1], self._leader == name)

    async def release(self, name: str) -> None:
        raise NotImplementedError


travel = st.floats(0, 2 * TTL_S)


@given(st.lists(st.tuples(st.integers(0, 2), travel, travel, travel), max_size=60))
@settings(max_examples=200, deadline=None)
def test_however_long_calls_take_never_two_believe_that_they_lead(calls: list[tuple[int, float, float, float]]) -> None:
    slow = SlowStore()
    replicas = [Lease(slow, str(i), ttl_s=TTL_S, renew_s=0.1, retry_s=0.1, clock=lambda: slow.now) for i in range(3)]

    async def play() -> None:
        for number, idle_s, slow.there_s, slow.back_s in calls:
            slow.now += idle_s
            await replicas[number].beat()
            held = [one.held for one in replicas if one.held]
            assert len(held) <= 1
            assert held in ([], [slow.tokens[-1]])

    asyncio.run(play())
