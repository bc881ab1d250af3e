"""Opinions for the cognitive map, and nominations on request; real Redis."""

from collections.abc import AsyncIterator

import pytest
import redis.asyncio

from hivemind.servers.common.errors import MeshError
from hivemind.servers.common.turn import Turn
from hivemind.servers.router.conversation import Conversation
from hivemind.servers.router.feedback import Feedback
from hivemind.servers.router.feedback_store import RedisFeedbackStore
from hivemind.servers.router.nomination import Nomination
from hivemind.servers.router.opinion_store import RedisOpinionStore
from hivemind.servers.router.outbox import NOMINATIONS, RedisOutbox
from hivemind.servers.router.record_store import RedisRecordStore
from hivemind.servers.router.recorder import Entry
from hivemind.servers.router.records import Call, Judged, Record
from hivemind.servers.router.sampling_store import RedisSamplingStore
from tests.support.redis_process import RedisProcess


@pytest.fixture
async def client(empty_redis: RedisProcess) -> AsyncIterator[redis.asyncio.Redis]:
    opened = redis.asyncio.Redis.from_url(empty_redis.url)
    yield opened
    await opened.aclose()


@pytest.fixture
def records(client: redis.asyncio.Redis) -> RedisRecordStore:
    return RedisRecordStore(client, retention_s=3600, conversation_retention_s=600, conversations=1000)


def sampling(client: redis.asyncio.Redis, *refusing: str) -> RedisSamplingStore:
    return RedisSamplingStore(client, consents=lambda tenant: tenant not in refusing, kept_s=600)


def entry(name: str, domain: str = "facts", tenant: str = "t1", *, nominated: bool = False) -> Entry:
    record = Record(name, 5.0, tenant, "", "OPENAI", "auto", chosen_model="courier", domain=domain)
    record.calls.append(Call("courier", "0", 0.0, adapter="implementer-v000001"))
    talk = Conversation(name, tenant, domain, "courier", "", (Turn("user", "Is it?"),), "Perhaps.")
    return Entry(record, talk, Nomination(name, "SAMPLE", 0.5) if nominated else None)


async def nominate(
    store: RedisSamplingStore, domain: str = "facts", count: int = 10, *, token: int = 0, key: str = ""
) -> list[str]:
    return await store.nominate(domain, count, 0.6, fencing_token=token, idempotency_key=key)


async def test_ratings_and_scores_are_listed_with_who_answered(
    client: redis.asyncio.Redis, records: RedisRecordStore
) -> None:
    rated, judged = entry("r1"), entry("r2", "math")
    judged.record.judged = (Judged("courier", 0.5, score=0.3), Judged("master", 0.5))
    await records.append([rated, judged])
    feedback = RedisFeedbackStore(client, retention_s=3600)
    await feedback.add(rated.record, Feedback("rating", -1, 9.0), "k")
    await feedback.add(rated.record, Feedback("rating", 0, 9.0), "k2")
    await feedback.add(rated.record, Feedback("preferred", "a", 9.0), "k3")

    found, place = await RedisOpinionStore(client).after("", 10)

    told = [(o.request_id, o.domain, o.source, o.alias, o.adapter, o.score, o.created) for o in found]
    assert told == [
        ("r2", "math", "JUDGE", "courier", "implementer-v000001", 0.3, 5.0),
        ("r1", "facts", "FEEDBACK", "courier", "implementer-v000001", 0.0, 9.0),
    ]
    assert await RedisOpinionStore(client).after(place, 10) == ([], place)


async def test_a_batch_or_an_opinion_that_comes_twice_is_told_once(
    client: redis.asyncio.Redis, records: RedisRecordStore
) -> None:
    judged = entry("r1")
    judged.record.judged = (Judged("courier", 0.5, score=0.3),)
    feedback = RedisFeedbackStore(client, retention_s=3600)
    for _ in range(2):
        await records.append([judged])
        await feedback.add(judged.record, Feedback("rating", 1, 9.0), "same")

    found, _ = await RedisOpinionStore(client).after("", 10)

    assert [o.source for o in found] == ["JUDGE", "FEEDBACK"]


async def test_opinions_are_read_page_by_page(client: redis.asyncio.Redis) -> None:
    feedback, store = RedisFeedbackStore(client, retention_s=3600), RedisOpinionStore(client)
    for i in range(7):
        await feedback.add(entry(f"r{i}").record, Feedback("rating", 1, float(i)), "k")

    seen, place = [], ""
    while True:
        page, place = await store.after(place, 3)
        if not page:
            break
        seen += [o.request_id for o in page]

    assert seen == [f"r{i}" for i in range(7)]
    with pytest.raises(MeshError):
        await store.after("nonsense", 3)


async def test_the_newest_answers_of_a_domain_are_nominated_once(
    client: redis.asyncio.Redis, records: RedisRecordStore
) -> None:
    await records.append([entry(f"r{i}", "facts" if i % 2 else "math") for i in range(10)])
    store = sampling(client)

    assert await nominate(store, count=2) == ["r9", "r7"]
    assert await nominate(store) == ["r5", "r3", "r1"]
    assert await nominate(store) == []
    letters = await RedisOutbox(client, NOMINATIONS, router="a").take(10)
    assert [letter.text.count(b'"SAMPLE"') for letter in letters] == [1] * 5


async def test_what_was_nominated_before_is_not_nominated_again(
    client: redis.asyncio.Redis, records: RedisRecordStore
) -> None:
    await records.append([entry("r1", nominated=True), entry("r2")])

    assert await nominate(sampling(client)) == ["r2"]


async def test_a_tenant_that_no_longer_consents_is_left_out(
    client: redis.asyncio.Redis, records: RedisRecordStore
) -> None:
    await records.append([entry("r1", tenant="t1"), entry("r2", tenant="t2")])

    assert await nominate(sampling(client, "t2")) == ["r1"]


async def test_an_older_leader_is_refused(client: redis.asyncio.Redis, records: RedisRecordStore) -> None:
    await records.append([entry("r1"), entry("r2")])
    store = sampling(client)
    await nominate(store, count=1, token=5)

    with pytest.raises(MeshError) as refused:
        await nominate(store, token=4)

    assert refused.value.reason == "STALE_FENCING_TOKEN"
    assert refused.value.metadata == {"newest_token": "5"}
    assert await nominate(store, token=5) == ["r1"]


async def test_a_repeated_key_has_one_effect(client: redis.asyncio.Redis, records: RedisRecordStore) -> None:
    await records.append([entry("r1"), entry("r2")])
    store = sampling(client)

    first, again = await nominate(store, count=1, key="k"), await nominate(store, count=1, key="k")

    assert first == again == ["r2"]
    with pytest.raises(MeshError) as refused:
        await nominate(store, count=2, key="k")
    assert refused.value.reason == "IDEMPOTENCY_KEY_REUSED"


async def test_answers_that_wait_behind_many_nominated_ones_are_found(
    client: redis.asyncio.Redis, records: RedisRecordStore
) -> None:
    await records.append([entry(f"r{i}") for i in range(70)])
    store = sampling(client)
    await nominate(store, count=65)

    assert await nominate(store, count=3) == ["r4", "r3", "r2"]
