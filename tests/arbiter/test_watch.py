"""Reading along over gRPC, on real files: the newest of each tenant, live ones, and what is forgotten."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivemind.servers.arbiter.segment import EXAMPLE, GONE, ROW
from hivemind.servers.arbiter.shelf import _newest
from hivemind.v1 import arbiter_pb2 as pb
from tests.arbiter.examples import example
from tests.arbiter.rig import WITHIN_S, Rig, arbiter, reason_of
from tests.support.redis_process import RedisProcess


@pytest.fixture
async def rig(tmp_path: Path, empty_redis: RedisProcess) -> AsyncIterator[Rig]:
    async with arbiter(tmp_path, empty_redis) as made:
        yield made


@dataclass
class Watcher:
    call: Any

    async def next(self) -> pb.WatchPlatinumResponse:
        message = await asyncio.wait_for(self.call.read(), WITHIN_S)
        assert isinstance(message, pb.WatchPlatinumResponse), await self.call.code()
        return message

    async def until_beat(self) -> list[pb.WatchPlatinumResponse]:
        """What comes before the next sign of life."""
        found = []
        while (message := await self.next()).WhichOneof("event") != "heartbeat":
            found.append(message)
        return found

    async def after(self, event: str) -> Any:
        """The next event of a kind; signs of life are passed over."""
        while (message := await self.next()).WhichOneof("event") == "heartbeat":
            pass
        assert message.WhichOneof("event") == event
        return getattr(message, event)


def watch(rig: Rig, newest: int = 0, largest: int = 0, **metadata: str) -> Watcher:
    request = pb.WatchPlatinumRequest(watcher="router", newest_per_tenant=newest, largest_bytes=largest)
    return Watcher(rig.stub.WatchPlatinum(request, metadata=tuple(metadata.items())))


def sequences(found: list[pb.WatchPlatinumResponse]) -> list[int]:
    return [message.example.sequence for message in found]


async def store(rig: Rig, *tenants: str) -> list[str]:
    return [(await rig.platinum.ledger.append(example(i, tenant=t))).id for i, t in enumerate(tenants)]


async def test_it_begins_with_the_newest_of_each_tenant_in_order_then_tells_what_comes(rig: Rig) -> None:
    await store(rig, "a", "a", "b", "a", "a")
    watcher = watch(rig, newest=2)

    assert sequences(await watcher.until_beat()) == [3, 4, 5]
    await store(rig, "b")
    assert (await watcher.after("example")).sequence == 6


async def test_each_of_several_watchers_gets_all_and_no_group_is_made(rig: Rig) -> None:
    await store(rig, "a", "b", "a")

    found = [sequences(await watch(rig).until_beat()) for _ in range(2)]

    assert found == [[1, 2, 3], [1, 2, 3]]
    assert await rig.redis.keys("arbiter:platinum*") == []


async def test_what_is_forgotten_is_told_at_once_and_never_comes_to_a_new_watcher(rig: Rig) -> None:
    first, second = await store(rig, "a", "a")
    watcher = watch(rig)
    await watcher.until_beat()

    await rig.stub.ForgetPlatinum(pb.ForgetPlatinumRequest(id=first, rotate=True))

    assert list((await watcher.after("forgotten")).ids) == [first]
    again = await watch(rig).until_beat()
    assert [m.example.id for m in again if m.HasField("example")] == [second]


async def test_a_tombstone_comes_behind_whatever_it_names_while_examples_are_stored_and_forgotten(rig: Rig) -> None:
    """However reading, storing and forgetting meet, a watcher ends with exactly what can be learnt from."""
    ids = await store(rig, *["a"] * 30)
    watchers = [watch(rig) for _ in range(3)]
    forgetting = [rig.stub.ForgetPlatinum(pb.ForgetPlatinumRequest(id=i)) for i in ids[::2]]
    await asyncio.gather(store(rig, *["b"] * 10), *forgetting)
    end = await rig.stub.GetPlatinumStats(pb.GetPlatinumStatsRequest())
    listed = await rig.stub.ListPlatinum(pb.ListPlatinumRequest(page_size=500))

    for watcher in watchers:
        held: set[str] = set()
        while True:
            message = await watcher.next()
            if message.HasField("example"):
                held.add(message.example.id)
            held -= set(message.forgotten.ids)
            if message.HasField("heartbeat") and message.heartbeat.last_sequence == end.last_sequence:
                break
        assert held == {e.id for e in listed.examples}


async def test_a_caller_that_names_itself_is_told_of_its_own_examples_only(rig: Rig) -> None:
    await store(rig, "a", "b", "a")
    call = watch(rig, **{"x-hivemind-tenant": "b"})

    assert sequences(await call.until_beat()) == [2]


async def test_what_is_too_large_for_the_watcher_is_left_out(rig: Rig) -> None:
    await rig.platinum.ledger.append(example(1, draft="long " * 1000))
    await rig.platinum.ledger.append(example(2))

    assert sequences(await watch(rig, largest=4000).until_beat()) == [2]


async def test_a_negative_number_is_refused(rig: Rig) -> None:
    assert await reason_of(watch(rig, newest=-1).next()) == "INVALID_FIELD"


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=40), st.integers(0, 5))
def test_the_newest_of_each_tenant_are_those_that_counting_from_the_end_finds(
    lines: list[tuple[int, bool]], per_tenant: int
) -> None:
    rows = np.zeros(len(lines), ROW)
    rows["tenant"], rows["kind"] = [t for t, _ in lines], [EXAMPLE if there else GONE for _, there in lines]
    left = np.full(4, per_tenant, np.int64)
    expected, seen = [], dict.fromkeys(range(4), 0)
    for i, (tenant, there) in reversed(list(enumerate(lines))):
        seen[tenant] += there
        if there and seen[tenant] <= per_tenant:
            expected.append(i)

    assert sorted(map(int, _newest(rows, left))) == sorted(expected)
    assert left.tolist() == [max(0, per_tenant - seen[t]) for t in range(4)]
