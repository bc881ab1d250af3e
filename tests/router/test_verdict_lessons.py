"""What the Judge's verdicts teach: as a pure function, and as it is stored; real Redis."""

from collections.abc import AsyncIterator

import pytest
import redis.asyncio
from hypothesis import given
from hypothesis import strategies as st

from hivemind.servers.common.errors import MeshError
from hivemind.servers.router.feedback import Feedback
from hivemind.servers.router.feedback_store import RedisFeedbackStore
from hivemind.servers.router.judge import Ranking, Verdict
from hivemind.servers.router.openai_request import check_hints
from hivemind.servers.router.record_store import RedisRecordStore
from hivemind.servers.router.recorder import Entry
from hivemind.servers.router.records import Candidate, Judged, Record
from hivemind.servers.router.request import Hints
from hivemind.servers.router.skill_store import FIELDS_OF_TENANT_MAX, SKILLS, field_of, opinions_of
from hivemind.servers.router.skills import VERDICT_WEIGHT, Lesson, Opinions, lessons_of
from tests.support.redis_process import RedisProcess

P = st.floats(0.01, 0.99)


@pytest.fixture
async def client(empty_redis: RedisProcess) -> AsyncIterator[redis.asyncio.Redis]:
    opened = redis.asyncio.Redis.from_url(empty_redis.url)
    yield opened
    await opened.aclose()


def store_of(client: redis.asyncio.Redis) -> RedisRecordStore:
    return RedisRecordStore(client, retention_s=3600, conversation_retention_s=600, conversations=10)


def entry(name: str, *lessons: Lesson, tenant: str = "t1", domain: str = "facts") -> Entry:
    return Entry(Record(name, 0.0, tenant, "", "OPENAI", "auto", domain=domain), lessons=lessons)


async def stored(client: redis.asyncio.Redis, alias: str, *, tenant: str = "t1", domain: str = "facts") -> Opinions:
    found = await client.hget(SKILLS, field_of(tenant, alias, domain))  # type: ignore[misc]
    return Opinions() if found is None else opinions_of(found)


def duel(share: float) -> tuple[Judged, Judged]:
    return Judged("courier", share, share), Judged("master", 1 - share, 1 - share)


@given(P, P, st.floats(0, 1))
def test_what_one_alias_gains_the_other_loses(courier: float, master: float, share: float) -> None:
    lessons = lessons_of(duel(share), {"courier": courier, "master": master})

    assert [lesson.alias for lesson in lessons] == ["courier", "master"]
    assert sum(lesson.surplus for lesson in lessons) == pytest.approx(0)
    assert {lesson.weight for lesson in lessons} == {VERDICT_WEIGHT}


@given(P, P)
def test_verdicts_that_come_as_expected_teach_nothing(courier: float, master: float) -> None:
    wins = courier * (1 - master) + (courier * master + (1 - courier) * (1 - master)) / 2

    assert [lesson.surplus for lesson in lessons_of(duel(wins), {"courier": courier, "master": master})] == [
        pytest.approx(0),
        pytest.approx(0),
    ]


def test_proposals_of_one_alias_teach_nothing() -> None:
    assert lessons_of((Judged("courier", 1.0), Judged("courier", 0.0)), {"courier": 0.7}) == ()


def test_an_alias_that_nothing_was_expected_of_learns_nothing() -> None:
    assert lessons_of(duel(1.0), {"courier": 0.7}) == ()


def test_two_proposals_of_an_alias_are_taken_together() -> None:
    verdicts = Ranking(3, {(0, 1): Verdict(1), (1, 2): Verdict(-1), (0, 2): Verdict(1)})
    judged = [
        Judged(alias, 0.5, verdicts.points(i, rivals))
        for i, (alias, rivals) in enumerate([("courier", [1]), ("master", [0, 2]), ("courier", [1])])
    ]

    lessons = lessons_of(judged, {"courier": 0.6, "master": 0.6})

    assert [(lesson.alias, lesson.surplus) for lesson in lessons] == [("courier", 0.5), ("master", -0.5)]


async def test_lessons_are_stored_as_opinions_of_less_weight(client: redis.asyncio.Redis) -> None:
    expected = Opinions()
    for i in range(5):
        await store_of(client).append([entry(f"r{i}", Lesson("courier", 0.3, VERDICT_WEIGHT))])
        expected = expected.after(0.3, 0.0, VERDICT_WEIGHT)

    found = await stored(client, "courier")

    assert found.count == pytest.approx(expected.count, abs=1e-4)
    assert found.surplus == pytest.approx(expected.surplus, abs=1e-4)
    assert found.count < 5 * VERDICT_WEIGHT + 1e-6


async def test_verdicts_and_persons_are_counted_together(client: redis.asyncio.Redis) -> None:
    await store_of(client).append([entry("r1", Lesson("courier", 0.3, VERDICT_WEIGHT))])
    rated = Record(
        "r2", 0.0, "t1", "", "OPENAI", "auto", chosen_model="courier", domain="facts",
        candidates=(Candidate("single", "courier", 0, 0.6),),
    )  # fmt: skip
    await RedisFeedbackStore(client, retention_s=60).add(rated, Feedback("rating", -1, 0.0), "k")

    found = await stored(client, "courier")
    expected = Opinions().after(0.3, 0.0, VERDICT_WEIGHT).after(0.0, 0.6)
    assert (found.count, found.surplus) == (pytest.approx(expected.count), pytest.approx(expected.surplus, abs=1e-5))


async def test_a_batch_that_is_stored_twice_teaches_once(client: redis.asyncio.Redis) -> None:
    batch = [entry("r1", Lesson("courier", 0.3, VERDICT_WEIGHT))]
    await store_of(client).append(batch)
    await store_of(client).append(batch)

    assert (await stored(client, "courier")).count == VERDICT_WEIGHT


async def test_lessons_move_no_other_tenant_and_no_other_domain(client: redis.asyncio.Redis) -> None:
    await store_of(client).append([entry("r1", Lesson("courier", -0.5, VERDICT_WEIGHT))])

    assert await stored(client, "courier", tenant="t2") == Opinions()
    assert await stored(client, "courier", domain="math") == Opinions()


async def test_a_tenant_that_makes_domains_up_cannot_fill_the_store(client: redis.asyncio.Redis) -> None:
    lesson = Lesson("courier", 0.3, VERDICT_WEIGHT)
    flood = [entry(f"r{i}", lesson, tenant="loud", domain=f"d{i}") for i in range(FIELDS_OF_TENANT_MAX + 20)]
    await store_of(client).append(flood)
    await store_of(client).append([entry("calm", lesson, tenant="calm")])

    assert await client.hlen(SKILLS) == FIELDS_OF_TENANT_MAX + 1  # type: ignore[misc]
    assert (await stored(client, "courier", tenant="calm")).count == VERDICT_WEIGHT


@pytest.mark.parametrize("domain", ["a\tb", "a\nb", "x" * 65])
def test_a_domain_that_could_not_be_stored_is_refused(domain: str) -> None:
    with pytest.raises(MeshError, match="domain"):
        check_hints(Hints(domain=domain), "hints.")
