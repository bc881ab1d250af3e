"""The Router reads the ledger of a real Arbiter along: what it learns, what it forgets, and what it does without."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from hivemind.servers.common.channels import peer_channel
from hivemind.servers.common.tasks import end_tasks
from hivemind.servers.common.turn import Turn
from hivemind.servers.router.example_book import ExampleBook
from hivemind.servers.router.example_index import flat_index
from hivemind.servers.router.platinum_client import NO_LIBRARY, PlatinumClient
from hivemind.v1 import arbiter_pb2 as pb
from tests.arbiter.examples import example
from tests.arbiter.rig import Rig, arbiter, eventually
from tests.router.test_example_index import ASKED, LIKENESS, MAYOR
from tests.support.redis_process import RedisProcess


@asynccontextmanager
async def reading(
    port: int, *, wanted: Callable[[], bool] = lambda: True, flat: Callable[[], Any] = flat_index
) -> AsyncIterator[ExampleBook]:
    """A book that a client keeps."""
    channel, book = peer_channel(f"127.0.0.1:{port}"), ExampleBook(time.monotonic)
    client = PlatinumClient(channel, book, LIKENESS, wanted=wanted, api_key=None, flat=flat)
    task = asyncio.create_task(client.watch())
    try:
        yield book
    finally:
        await end_tasks(task)
        await channel.close()


async def store(rig: Rig, question: str = MAYOR, answer: str = "It is Ada.", **fields: Any) -> str:
    turns = fields.pop("messages", (Turn("user", question),))
    new = example(1, messages=turns, final_platinum_answer=answer, **{"tenant": "t1", **fields})
    return (await rig.platinum.ledger.append(new)).id


def ids(book: ExampleBook, question: str = ASKED, tenant: str = "t1") -> list[str]:
    return [hit.exemplar.platinum_id for hit in book.find(tenant, question, 4)]


@pytest.fixture
async def rig(tmp_path: Path, empty_redis: RedisProcess) -> AsyncIterator[Rig]:
    async with arbiter(tmp_path, empty_redis) as made:
        yield made


async def test_what_stood_in_the_ledger_and_what_comes_can_be_found_by_each_replica(rig: Rig) -> None:
    first = await store(rig)
    async with reading(rig.port) as one, reading(rig.port) as two:
        for book in (one, two):
            await eventually(lambda book=book: ids(book) == [first], "the example is read")
        second = await store(rig, "Where is the market of Beldale?")
        for book in (one, two):
            await eventually(lambda book=book: ids(book, "In which place is Beldale's market?") == [second], "it came")
            assert ids(book, tenant="t2") == []


async def test_a_forgotten_example_is_out_within_two_seconds(rig: Rig) -> None:
    first = await store(rig)
    async with reading(rig.port) as book:
        await eventually(lambda: ids(book) == [first], "the example is read")

        await rig.stub.ForgetPlatinum(pb.ForgetPlatinumRequest(tenant="t1"))

        await eventually(lambda: not ids(book), "it is forgotten", within_s=2)
        assert (len(book), book.missing) == (0, "")


async def test_a_router_that_starts_later_never_hears_of_what_was_forgotten(rig: Rig) -> None:
    first, second = await store(rig), await store(rig, "Where is the market of Beldale?")
    await rig.stub.ForgetPlatinum(pb.ForgetPlatinumRequest(id=first))
    async with reading(rig.port) as book:
        await eventually(lambda: len(book) == 1, "the rest is read")
        assert (ids(book), ids(book, "Where is the market of Beldale?")) == ([], [second])


@pytest.mark.parametrize(
    "fields",
    [
        {"consent": ""},
        {"answer": "Ask [EMAIL] or [PERSON_2]."},
        {"messages": (Turn("user", MAYOR), Turn("assistant", "?"), Turn("user", MAYOR))},
        {"messages": (Turn("system", "Be brief."),)},
        {"answer": " "},
    ],
)
async def test_what_cannot_serve_as_an_example_is_left_out(rig: Rig, fields: dict[str, Any]) -> None:
    await store(rig, **fields)
    last = await store(rig, "Where is the market of Beldale?")
    async with reading(rig.port) as book:
        await eventually(lambda: ids(book, "Where is the market of Beldale?") == [last], "the last one is read")
        assert len(book) == 1


async def test_after_a_lost_arbiter_the_ledger_is_read_again_from_its_beginning(
    tmp_path: Path, empty_redis: RedisProcess
) -> None:
    async with arbiter(tmp_path, empty_redis) as rig:
        first = await store(rig)
        port = rig.port
        async with reading(port) as book:
            await eventually(lambda: ids(book) == [first], "the example is read")
            held = book._index
            async with arbiter(tmp_path, empty_redis) as other:  # a second one forgets while the first is lost
                rig.platinum.streams.end()
                await other.stub.ForgetPlatinum(pb.ForgetPlatinumRequest(id=first))
            rig.platinum.streams._ending = False
            await eventually(lambda: book._index is not held and not ids(book), "another index was read")


async def test_without_the_library_one_line_says_so_and_nothing_is_held(rig: Rig) -> None:
    def absent() -> Any:
        raise ImportError("no faiss")

    await store(rig)
    with capture_logs() as logs:
        async with reading(rig.port, flat=absent) as book:
            await eventually(lambda: book.missing == NO_LIBRARY, "it is said")
            assert ids(book) == []

    assert [line["event"] for line in logs if line["log_level"] == "warning"] == ["retrieval_left_out"]


async def test_nothing_is_read_while_no_policy_wants_it_and_nothing_kept_after(rig: Rig) -> None:
    first, wanted = await store(rig), [False]
    async with reading(rig.port, wanted=lambda: wanted[0]) as book:
        assert (len(book), book.missing != "") == (0, True)
        wanted[0] = True
        await eventually(lambda: ids(book) == [first], "it is read once it is wanted")
        wanted[0] = False
        await eventually(lambda: len(book) == 0, "it is dropped")
