"""The queue of candidates, on a real Redis."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hivemind.servers.arbiter.candidate import Candidate, Draft, Lease, Submitted
from hivemind.servers.arbiter.queue_redis import Bounds, RedisQueue
from hivemind.servers.common.redis_client import redis_client
from hivemind.servers.common.turn import Turn
from tests.support.redis_process import RedisProcess

ACCEPTED, DUPLICATE, DROPPED = Submitted.ACCEPTED, Submitted.DUPLICATE, Submitted.DROPPED
BOUNDS = Bounds(candidates=4, of_tenant=3, candidate_bytes=2000, seen_s=3600, lease_s=10.0)


@dataclass
class Rig:
    """A queue whose scripts' time can be moved, with the number of candidates that it said were dropped."""

    redis: RedisProcess
    bounds: Bounds = BOUNDS
    shift_ms: int = 0
    dropped: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        client = redis_client(self.redis.url, timeout_s=2.0)
        self.queue = RedisQueue(client, self.bounds, on_drop=self.dropped.append, shift_ms=lambda: self.shift_ms)
        self.close = client.aclose

    async def submit(self, *candidates: Candidate) -> list[Submitted]:
        return list(await self.queue.submit(candidates))

    async def taken(self) -> list[str]:
        """Takes all there is; the drafts in the order in which they came."""
        found = []
        while lease := await self.queue.take():
            found.append(lease.candidate.draft.draft)
        return found


def candidate(name: str, value: float = 0.5, tenant: str = "t1", text: str = "") -> Candidate:
    draft = Draft((Turn("user", text or f"What is {name}?"),), name, tenant, "traffic", alternatives=("x",))
    return Candidate(draft, value, "SAMPLE")


@pytest.fixture
async def rig(empty_redis: RedisProcess) -> AsyncIterator[Rig]:
    made = Rig(empty_redis)
    yield made
    await made.close()


async def take(rig: Rig) -> Lease:
    lease = await rig.queue.take()
    assert lease is not None
    return lease


async def test_the_most_valuable_comes_first_and_whole(rig: Rig) -> None:
    await rig.submit(candidate("low", 0.1), candidate("high", 0.9))

    lease = await take(rig)

    assert lease.candidate == candidate("high", 0.9)
    assert (await take(rig)).candidate.draft.draft == "low"
    assert await rig.queue.take() is None


async def test_the_same_conversation_of_a_tenant_is_taken_once_in_its_time(rig: Rig) -> None:
    first = await rig.submit(candidate("a", text="same"), candidate("b", text="same"))
    other_tenant = await rig.submit(candidate("c", text="same", tenant="t2"))

    assert first == [ACCEPTED, DUPLICATE]
    assert other_tenant == [ACCEPTED]


async def test_a_conversation_stays_known_after_it_was_refined(rig: Rig) -> None:
    await rig.submit(candidate("a"))
    await rig.queue.done(await take(rig))

    assert await rig.submit(candidate("a")) == [DUPLICATE]


async def test_where_it_is_full_the_least_valuable_oldest_goes_first_and_is_counted(rig: Rig) -> None:
    for i, value in enumerate((0.2, 0.2, 0.8, 0.5)):
        rig.shift_ms += 1000
        await rig.submit(candidate(f"c{i}", value, tenant=f"t{i}"))

    rig.shift_ms += 1000
    found = await rig.submit(candidate("better", 0.4, tenant="t9"), candidate("worse", 0.1, tenant="t8"))

    assert found == [ACCEPTED, DROPPED]
    assert sum(rig.dropped) == 2
    assert await rig.queue.counts() == (4, 2)
    assert await rig.taken() == ["c2", "c3", "better", "c1"]


async def test_a_tenant_that_floods_the_queue_keeps_to_its_share(rig: Rig) -> None:
    await rig.submit(candidate("other", 0.1, tenant="t2"))
    for i in range(8):
        rig.shift_ms += 1000
        await rig.submit(candidate(f"flood{i}", 0.9))

    assert await rig.queue.counts() == (4, 5)
    assert await rig.taken() == ["flood7", "flood6", "flood5", "other"]


async def test_what_a_dead_worker_had_comes_back_after_its_lease(rig: Rig) -> None:
    await rig.submit(candidate("a"))
    dead = await take(rig)
    rig.shift_ms += 9_000
    assert await rig.queue.take() is None

    rig.shift_ms += 2_000
    again = await take(rig)

    assert (again.id, again.attempt) == (dead.id, 2)


async def test_who_lost_its_lease_changes_nothing_any_more(rig: Rig) -> None:
    await rig.submit(candidate("a"))
    late = await take(rig)
    rig.shift_ms += 11_000
    now = await take(rig)

    await rig.queue.done(late)
    await rig.queue.renew(late)
    await rig.queue.give_back(late, delay_s=0)
    assert await rig.queue.take() is None
    await rig.queue.give_back(now, delay_s=0)
    assert (await take(rig)).attempt == 3


async def test_a_renewed_lease_holds_on(rig: Rig) -> None:
    await rig.submit(candidate("a"))
    lease = await take(rig)
    rig.shift_ms += 8_000
    await rig.queue.renew(lease)
    rig.shift_ms += 8_000

    assert await rig.queue.take() is None


async def test_what_was_given_back_is_not_taken_before_its_time(rig: Rig) -> None:
    await rig.submit(candidate("later", 0.9), candidate("now", 0.1))
    await rig.queue.give_back(await take(rig), delay_s=30)

    now = await take(rig)
    assert now.candidate.draft.draft == "now"
    await rig.queue.done(now)
    assert await rig.queue.take() is None
    assert await rig.queue.counts() == (1, 0)
    rig.shift_ms += 31_000
    await rig.queue.done(await take(rig))
    assert await rig.queue.counts() == (0, 0)


async def test_a_candidate_that_is_too_large_is_dropped(rig: Rig) -> None:
    assert await rig.submit(candidate("x" * 3000), candidate("a")) == [DROPPED, ACCEPTED]
    assert sum(rig.dropped) == 1


async def test_nothing_is_left_in_redis_but_what_was_seen(rig: Rig, empty_redis: RedisProcess) -> None:
    await rig.submit(*(candidate(f"c{i}", i / 10) for i in range(6)))
    while lease := await rig.queue.take():
        await rig.queue.done(lease)

    left = {key.decode() for key in empty_redis.client.keys("arbiter:queue:*")}
    assert {key for key in left if ":seen:" not in key} == {"arbiter:queue:dropped"}


async def test_what_cannot_be_read_is_taken_out(rig: Rig, empty_redis: RedisProcess) -> None:
    await rig.submit(candidate("broken", 0.9), candidate("whole", 0.1))
    for name, body in empty_redis.client.hgetall("arbiter:queue:body").items():
        if b"broken" in body:
            empty_redis.client.hset("arbiter:queue:body", name, b"{}")

    assert await rig.taken() == ["whole"]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.integers(0, 20), st.sampled_from([0.1, 0.5, 0.9]), st.sampled_from("ab")),
        st.tuples(st.just("take"), st.just(0), st.just(0.0), st.just("")),
        st.tuples(st.sampled_from(["done", "back"]), st.integers(0, 5), st.sampled_from([0.0, 5.0]), st.just("")),
        st.tuples(st.just("pass"), st.integers(1, 15), st.just(0.0), st.just("")),
    ),
    max_size=40,
)  # fmt: skip


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS)
def test_every_accepted_candidate_is_waiting_leased_done_or_dropped(
    empty_redis: RedisProcess, steps: list[tuple[str, int, float, str]]
) -> None:
    async def scenario() -> None:
        empty_redis.client.flushall()
        rig = Rig(empty_redis)
        accepted, done, leases = 0, 0, []
        for what, number, value, tenant in steps:
            if what == "submit":
                found = await rig.submit(candidate(f"c{number}", value, tenant))
                accepted += found == [ACCEPTED]
                done += found == [ACCEPTED] and sum(rig.dropped[-1:])
            elif what == "take":
                lease = await rig.queue.take()
                leases += [lease] if lease is not None else []
            elif what == "pass":
                rig.shift_ms += number * 1000
            elif leases:
                lease = leases.pop(number % len(leases))
                before = empty_redis.client.hlen("arbiter:queue:body")
                await (rig.queue.done(lease) if what == "done" else rig.queue.give_back(lease, delay_s=value))
                done += before - empty_redis.client.hlen("arbiter:queue:body")
            waiting, _ = await rig.queue.counts()
            leased = empty_redis.client.zcard("arbiter:queue:leases")
            assert waiting + leased <= BOUNDS.candidates
            assert waiting + leased == empty_redis.client.hlen("arbiter:queue:body") == accepted - done
        await rig.close()

    asyncio.run(scenario())
