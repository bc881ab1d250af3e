"""Long pages of records and opinions are read in portions, so that requests to models get their turn; real Redis."""

from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
import redis.asyncio

from hivemind.servers.router.feedback import Feedback
from hivemind.servers.router.feedback_store import RedisFeedbackStore
from hivemind.servers.router.opinion_store import RedisOpinionStore
from hivemind.servers.router.record_store import RedisRecordStore
from hivemind.servers.router.recorder import Entry
from hivemind.servers.router.records import Record
from hivemind.servers.router.service import RouterService
from hivemind.v1 import router_pb2
from tests.support.redis_process import RedisProcess

LARGEST = 25
"""Records that may be turned into messages between two turns of the event loop."""


class Records(RedisRecordStore):
    """Notes how many records were asked for at once."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        super().__init__(client, retention_s=3600, conversation_retention_s=600, conversations=1000)
        self.asked: list[int] = []

    async def list(self, *, page_size: int, page_token: str, tenant: str) -> tuple[list[Record], str]:
        self.asked.append(page_size)
        return await super().list(page_size=page_size, page_token=page_token, tenant=tenant)


class Opinions(RedisOpinionStore):
    """Notes how many opinions were asked for at once."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        super().__init__(client)
        self.asked: list[int] = []

    async def after(self, place: str, count: int) -> "tuple[Any, str]":
        self.asked.append(count)
        return await super().after(place, count)


class Listing:
    """A Router's service with nothing behind it but stores."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self.records, self.opinions = Records(client), Opinions(client)
        self.feedback = RedisFeedbackStore(client, retention_s=3600)
        none = cast(Any, None)
        self.service = RouterService(
            none, self.records, none, self.feedback, none, self.opinions, none, clock=lambda: 0.0
        )

    async def store(self, count: int) -> None:
        """Records r0, r1 ... of the tenants even and odd in turn, each with a rating."""
        for i in range(count):
            record = Record(f"r{i}", 5.0, ("even", "odd")[i % 2], "", "OPENAI", "auto")
            await self.records.append([Entry(record)])
            await self.feedback.add(record, Feedback("rating", 1, float(i)), "k")

    async def page(self, size: int, token: str = "", tenant: str = "") -> tuple[list[str], str]:
        """Ids and the token for the next page."""
        request = router_pb2.ListRequestsRequest(page_size=size, page_token=token, tenant=tenant)
        answer = await self.service.ListRequests(request, None)
        assert all(r.feedback[0].rating == 1 for r in answer.requests)
        return [r.request_id for r in answer.requests], answer.next_page_token


@pytest.fixture
async def listing(empty_redis: RedisProcess) -> AsyncIterator[Listing]:
    client = redis.asyncio.Redis.from_url(empty_redis.url)
    yield Listing(client)
    await client.aclose()


async def test_a_long_page_of_records_is_read_in_portions(listing: Listing) -> None:
    await listing.store(70)

    first, token = await listing.page(50)
    rest, end = await listing.page(50, token)

    assert first + rest == [f"r{i}" for i in reversed(range(70))]
    assert len(first) == 50
    assert end == ""
    assert max(listing.records.asked) <= LARGEST


async def test_a_page_of_one_tenant_is_as_long_as_asked_for(listing: Listing) -> None:
    await listing.store(70)

    found, token = await listing.page(30, tenant="odd")

    assert found == [f"r{i}" for i in range(69, 10, -2)]
    assert (await listing.page(30, token, tenant="odd"))[0] == [f"r{i}" for i in range(9, 0, -2)]


async def test_a_long_page_of_opinions_is_read_in_portions(listing: Listing) -> None:
    for i in range(70):
        record = Record(f"r{i}", 5.0, "t1", "", "OPENAI", "auto", chosen_model="courier", domain="facts")
        await listing.feedback.add(record, Feedback("rating", 1, float(i)), "k")

    async def page(token: str) -> router_pb2.ListOpinionsResponse:
        request = router_pb2.ListOpinionsRequest(page_size=50, page_token=token)
        return await listing.service.ListOpinions(request, None)

    first = await page("")
    rest = await page(first.next_page_token)

    assert [o.request_id for o in [*first.opinions, *rest.opinions]] == [f"r{i}" for i in range(70)]
    assert len(first.opinions) == 50
    assert len((await page(rest.next_page_token)).opinions) == 0
    assert max(listing.opinions.asked) <= LARGEST
