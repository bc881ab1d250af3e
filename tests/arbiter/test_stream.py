"""The platinum stream over gRPC, on real files and a real Redis."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from hivemind.v1 import arbiter_pb2 as pb
from tests.arbiter.examples import example
from tests.arbiter.rig import Rig, arbiter, eventually, reason_of
from tests.support.redis_process import RedisProcess, redis_process


@pytest.fixture
async def rig(tmp_path: Path, empty_redis: RedisProcess) -> AsyncIterator[Rig]:
    async with arbiter(tmp_path, empty_redis) as made:
        yield made


async def store(rig: Rig, count: int) -> None:
    await asyncio.gather(*(rig.platinum.ledger.append(example(i)) for i in range(count)))


async def test_backlog_then_live_without_gap_or_reordering(rig: Rig) -> None:
    await store(rig, 40)
    consumer = rig.stream(in_flight=1000)
    first = await consumer.sequences(20)
    storing = asyncio.gather(*(rig.platinum.ledger.append(example(i)) for i in range(60)))
    rest = await consumer.sequences(80)
    await storing

    assert first + rest == list(range(1, 101))


async def test_an_example_comes_right_after_its_commit_with_all_its_fields(rig: Rig) -> None:
    consumer = rig.stream()
    await consumer.beat()
    stored = await rig.platinum.ledger.append(example(1))

    found = await consumer.next()

    assert (found.id, found.sequence, found.sha256) == (stored.id, 1, stored.sha256)
    assert found.final_platinum_answer == stored.new.final_platinum_answer
    assert [m.role for m in found.messages] == ["system", "user"]
    assert found.provenance.decisions == ["The Oracle corrected the number."]
    assert found.provenance.latency.ToTimedelta().total_seconds() == 1.5
    assert found.refined_by == pb.PlatinumExample.ORACLE


async def test_never_more_than_max_in_flight_are_under_way(rig: Rig) -> None:
    await store(rig, 10)
    consumer = rig.stream(in_flight=3)

    assert await consumer.sequences(3) == [1, 2, 3]
    assert await consumer.quiet()
    assert await rig.ack(2) == 0
    assert await consumer.next() is not None
    assert await consumer.quiet()
    assert await rig.ack(1, 3) == 3
    assert await consumer.sequences(2) == [5, 6]


async def test_a_consumer_that_comes_back_goes_on_where_it_had_acknowledged(rig: Rig) -> None:
    await store(rig, 10)
    consumer = rig.stream(in_flight=5)
    assert await consumer.sequences(5) == [1, 2, 3, 4, 5]
    await rig.ack(1, 2, 4)
    consumer.leave()

    again = rig.stream(in_flight=5)
    found = await again.sequences(5)

    assert found == [3, 5, 6, 7, 8]


async def test_what_a_consumer_held_comes_back_in_order_within_a_smaller_limit(rig: Rig) -> None:
    await store(rig, 10)
    consumer = rig.stream(in_flight=6)
    await consumer.sequences(6)
    consumer.leave()

    again = rig.stream(in_flight=2)

    assert await again.sequences(8, ack=True) == [1, 2, 3, 4, 5, 6, 7, 8]


async def test_an_example_comes_again_until_it_is_acknowledged(rig: Rig) -> None:
    await store(rig, 1)
    for _ in range(3):
        consumer = rig.stream()
        assert await consumer.sequences(1) == [1]
        consumer.leave()
    await rig.ack(1)

    assert await rig.stream().quiet()


async def test_consumers_of_a_group_share_the_work_and_groups_do_not(rig: Rig) -> None:
    await store(rig, 60)
    one, two, other = rig.stream("one", in_flight=5), rig.stream("two", in_flight=5), rig.stream(group="h")

    async def work(consumer: object, seen: list[int]) -> None:
        while len(shares[0]) + len(shares[1]) < 60:
            seen.append((await consumer.next()).sequence)  # type: ignore[attr-defined]
            await rig.ack(seen[-1])

    shares: tuple[list[int], list[int]] = ([], [])
    tasks = [asyncio.create_task(work(c, s)) for c, s in ((one, shares[0]), (two, shares[1]))]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()

    assert sorted(shares[0] + shares[1]) == list(range(1, 61))
    assert min(map(len, shares)) >= 10
    assert shares[0] == sorted(shares[0])
    assert await other.sequences(32) == list(range(1, 33))


async def test_what_a_consumer_held_goes_to_the_others_when_it_leaves(rig: Rig) -> None:
    await store(rig, 6)
    one = rig.stream("one", in_flight=3)
    await one.sequences(3)
    two = rig.stream("two", in_flight=6)
    assert await two.sequences(3) == [4, 5, 6]

    one.leave()

    assert await two.sequences(3) == [1, 2, 3]


async def test_what_a_hanging_consumer_holds_goes_to_the_others_after_the_time_out(
    tmp_path: Path, empty_redis: RedisProcess
) -> None:
    async with arbiter(tmp_path, empty_redis, platinum_idle_s=0.3) as rig:
        await store(rig, 4)
        hanging = rig.stream("hanging", in_flight=2)
        await hanging.sequences(2)
        busy = rig.stream("busy", in_flight=10)
        first = await busy.sequences(2)
        await rig.ack(*first)

        assert first == [3, 4]
        assert await busy.sequences(2) == [1, 2]


async def test_a_dead_servers_consumers_lose_their_examples_to_the_others(
    tmp_path: Path, empty_redis: RedisProcess
) -> None:
    async with arbiter(tmp_path, empty_redis, platinum_lease_s=0.5) as rig:
        await store(rig, 4)
        dead = rig.stream("dead", in_flight=2)
        await dead.sequences(2)
        dead.leave()
        await rig.redis.hset("arbiter:platinum-consumers:g", "dead", "token 99999999999999")  # as kill -9 leaves it
        other = rig.stream("other", in_flight=10)
        assert await other.sequences(2) == [3, 4]

        await rig.redis.hset("arbiter:platinum-consumers:g", "dead", "token 1")

        assert await other.sequences(2) == [1, 2]


async def test_a_newer_stream_of_a_consumer_takes_over(rig: Rig) -> None:
    await store(rig, 2)
    old = rig.stream()
    await old.sequences(2)

    new = rig.stream()

    assert await new.sequences(2) == [1, 2]
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await old.next()
    assert error.value.code() == grpc.StatusCode.ABORTED


async def test_signs_of_life_say_the_last_sequence_and_the_lag(rig: Rig) -> None:
    await store(rig, 5)
    consumer = rig.stream(in_flight=2)
    await consumer.sequences(2)
    beat = await consumer.beat()

    assert (beat.last_sequence, beat.lag) == (5, 5)

    await rig.ack(1)
    await consumer.next()
    beat = await consumer.beat()
    assert beat.lag == 4


async def test_the_lag_of_a_group_is_a_metric_even_when_its_consumers_are_away(rig: Rig) -> None:
    await store(rig, 3)
    consumer = rig.stream()
    await consumer.sequences(3)
    await rig.ack(1, 2, 3)
    consumer.leave()
    await eventually(lambda: rig.metric("hivemind_platinum_lag", group="g") == 0, "no lag")

    await store(rig, 4)

    await eventually(lambda: rig.metric("hivemind_platinum_lag", group="g") == 4, "a lag of four")


async def test_an_absent_consumer_costs_redis_nothing(rig: Rig) -> None:
    await store(rig, 10)
    consumer = rig.stream(in_flight=4)
    await consumer.sequences(4)
    await rig.ack(1, 2, 3, 4)
    await consumer.sequences(4)
    consumer.leave()
    await store(rig, 500)

    assert await rig.redis.xlen("arbiter:platinum:g") == 4

    assert await rig.stream(in_flight=1000).sequences(506) == list(range(5, 511))


async def test_forgotten_examples_and_tombstones_are_passed_over(rig: Rig) -> None:
    await store(rig, 6)
    forgotten = await rig.platinum.ledger.find((await rig.stub.ListPlatinum(pb.ListPlatinumRequest())).examples[2].id)
    assert forgotten is not None
    await rig.stub.ForgetPlatinum(pb.ForgetPlatinumRequest(id=forgotten.id))
    await store(rig, 1)
    consumer = rig.stream()

    assert await consumer.sequences(6) == [1, 2, 3, 5, 6, 8]
    assert await rig.ack(1, 2, 3, 5, 6, 8) == 8


async def test_an_example_that_is_forgotten_while_the_consumer_is_slow_does_not_come(rig: Rig) -> None:
    big = "x" * 300_000
    for i in range(60):
        await rig.platinum.ledger.append(example(i, draft=big))
    consumer = rig.stream(in_flight=60)
    await consumer.next()
    await rig.stub.ForgetPlatinum(pb.ForgetPlatinumRequest(tenant="t1"))
    await rig.platinum.ledger.append(example(99))

    seen = [s async for s in _until(consumer, 62)]

    assert len(seen) < 55


async def _until(consumer: object, last: int) -> AsyncIterator[int]:
    while True:
        sequence = (await consumer.next()).sequence  # type: ignore[attr-defined]
        yield sequence
        if sequence == last:
            return


async def test_two_servers_on_one_folder_serve_one_group(tmp_path: Path, empty_redis: RedisProcess) -> None:
    async with arbiter(tmp_path, empty_redis) as here, arbiter(tmp_path, empty_redis) as there:
        consumer = there.stream(in_flight=2)
        await consumer.beat()
        await store(here, 6)

        found = []
        for _ in range(6):
            found.append((await consumer.next()).sequence)
            await here.ack(found[-1])

        assert found == [1, 2, 3, 4, 5, 6]


async def test_when_redis_lost_everything_the_group_begins_again_from_the_start(rig: Rig) -> None:
    await store(rig, 5)
    consumer = rig.stream()
    assert await consumer.sequences(5) == [1, 2, 3, 4, 5]
    await rig.ack(1, 2, 3)

    await rig.redis.flushall()
    await store(rig, 1)

    assert await consumer.sequences(6) == [1, 2, 3, 4, 5, 6]


async def test_a_group_that_is_ahead_of_a_new_ledger_begins_again(tmp_path: Path, empty_redis: RedisProcess) -> None:
    async with arbiter(tmp_path / "old", empty_redis) as old:
        await store(old, 9)
        await old.stream().sequences(9)
        await old.ack(*range(1, 10))
    async with arbiter(tmp_path / "new", empty_redis) as new:
        await store(new, 3)

        assert await new.stream().sequences(3) == [1, 2, 3]


async def test_streams_end_as_unavailable_when_the_server_ends(rig: Rig) -> None:
    consumer = rig.stream()
    await consumer.beat()

    rig.platinum.streams.end()

    with pytest.raises(grpc.aio.AioRpcError) as error:
        await consumer.next()
    assert error.value.code() == grpc.StatusCode.UNAVAILABLE


async def test_the_stream_outlives_a_redis_that_is_killed_and_comes_back(tmp_path: Path) -> None:
    folder = tmp_path / "redis"
    folder.mkdir()
    with redis_process(folder) as redis:
        async with arbiter(tmp_path / "datasets", redis) as rig:
            await store(rig, 4)
            consumer = rig.stream(in_flight=3)
            assert await consumer.sequences(3) == [1, 2, 3]
            assert await rig.ack(1) == 1
            assert (await consumer.next()).sequence == 4
            redis.kill()
            await store(rig, 2)
            assert await reason_of(rig.ack(2)) == "STORE_UNAVAILABLE"
            assert await consumer.quiet()
            redis.start()

            assert await rig.ack(2, 3) == 3
            assert await consumer.sequences(2) == [5, 6]


async def test_a_consumer_that_joins_while_redis_is_away_is_served_when_it_is_back(tmp_path: Path) -> None:
    folder = tmp_path / "redis"
    folder.mkdir()
    with redis_process(folder) as redis:
        async with arbiter(tmp_path / "datasets", redis) as rig:
            await store(rig, 2)
            redis.kill()
            consumer = rig.stream()
            await consumer.beat()
            redis.start()

            assert await consumer.sequences(2) == [1, 2]


@pytest.mark.parametrize(
    ("fields", "field"),
    [({"group": "a b"}, "group"), ({"consumer": "../x"}, "consumer"), ({"in_flight": -1}, "max_in_flight")],
)
async def test_a_wrong_field_is_named(rig: Rig, fields: dict[str, object], field: str) -> None:
    consumer = rig.stream(**fields)  # type: ignore[arg-type]

    with pytest.raises(grpc.aio.AioRpcError) as error:
        await consumer.next()

    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert field in (error.value.details() or "")


@pytest.mark.parametrize("sequences", [[0], [-3], list(itertools.repeat(1, 10_001))])
async def test_sequences_that_cannot_be_are_refused(rig: Rig, sequences: list[int]) -> None:
    assert await reason_of(rig.ack(*sequences)) == "INVALID_FIELD"


async def test_acknowledging_what_was_not_delivered_changes_nothing(rig: Rig) -> None:
    await store(rig, 3)

    assert await rig.ack(1, 2, 3) == 0
    assert await rig.stream().sequences(3) == [1, 2, 3]
