"""From an answer or an opinion to the Arbiter's queue: nothing is lost on the way; real Redis."""

from collections.abc import AsyncIterator, Sequence

import orjson
import pytest
import redis.asyncio

from hivemind.servers.common.errors import MeshError
from hivemind.servers.common.turn import Turn
from hivemind.servers.router.carrier import Carrier
from hivemind.servers.router.conversation import Conversation
from hivemind.servers.router.feedback import Feedback
from hivemind.servers.router.feedback_store import RedisFeedbackStore
from hivemind.servers.router.nomination import Nomination
from hivemind.servers.router.nominations import Nominations
from hivemind.servers.router.outbox import MOST, NOMINATIONS, OUTCOMES, RedisOutbox
from hivemind.servers.router.outcomes import Outcome
from hivemind.servers.router.record_store import RedisRecordStore
from hivemind.servers.router.recorder import Entry, Recorder
from hivemind.servers.router.records import Call, Record
from tests.support.redis_process import RedisProcess


class Sink:
    """An Arbiter that can be away, or find fault with one request id."""

    def __init__(self) -> None:
        self.got: list[tuple[str, str, str]] = []
        self.away, self.refuses = False, ""

    async def submit(self, candidates: Sequence[tuple[Nomination, Conversation]]) -> None:
        if self.away:
            raise MeshError("PEER_UNAVAILABLE", "away")
        if any(n.request_id == self.refuses for n, _ in candidates):
            raise MeshError("INVALID_FIELD", "candidates[0]: no")
        self.got += [(n.request_id, n.cause, c.draft) for n, c in candidates]


@pytest.fixture
async def client(empty_redis: RedisProcess) -> AsyncIterator[redis.asyncio.Redis]:
    opened = redis.asyncio.Redis.from_url(empty_redis.url)
    yield opened
    await opened.aclose()


def store_of(client: redis.asyncio.Redis, *, conversations: int = 1000) -> RedisRecordStore:
    return RedisRecordStore(client, retention_s=3600, conversation_retention_s=600, conversations=conversations)


def entry(name: str, *, cause: str = "SAMPLE", draft: str = "Perhaps.", kept: bool = True) -> Entry:
    record = Record(name, 0.0, "t1", "", "OPENAI", "auto", chosen_model="courier", domain="facts")
    talk = Conversation(name, "t1", "facts", "courier", "", (Turn("user", "Is it?"),), draft)
    return Entry(record, talk if kept else None, Nomination(name, cause, 0.5) if cause else None)


def sender_of(client: redis.asyncio.Redis, sink: Sink, router: str = "a") -> tuple[Carrier, list[int]]:
    lost: list[int] = []
    nominations = Nominations(store_of(client), sink, on_lost=lost.append)
    return Carrier(RedisOutbox(client, NOMINATIONS, router=router), nominations.deliver), lost


async def test_a_nominated_answer_reaches_the_arbiter_with_its_conversation(client: redis.asyncio.Redis) -> None:
    await store_of(client).append([entry("r1"), entry("r2", cause="")])
    sink = Sink()
    sender, lost = sender_of(client, sink)

    assert await sender.send() == 1
    assert sink.got == [("r1", "SAMPLE", "Perhaps.")]
    assert await sender.send() == 0
    assert not lost


async def test_nominations_wait_while_the_arbiter_is_away(client: redis.asyncio.Redis) -> None:
    await store_of(client).append([entry("r1"), entry("r2")])
    sink = Sink()
    sink.away = True
    sender, _ = sender_of(client, sink)
    with pytest.raises(MeshError):
        await sender.send()

    sink.away = False
    await sender.send()

    assert [name for name, _, _ in sink.got] == ["r1", "r2"]


async def test_what_a_dead_router_took_is_sent_when_it_is_back(client: redis.asyncio.Redis) -> None:
    await store_of(client).append([entry("r1")])
    assert len(await RedisOutbox(client, NOMINATIONS, router="a").take(10)) == 1
    sink = Sink()
    other, _ = sender_of(client, sink, "b")
    same, _ = sender_of(client, sink, "a")

    assert await other.send() == 0
    assert await same.send() == 1


async def test_letters_are_sent_when_the_store_has_lost_everything_meanwhile(client: redis.asyncio.Redis) -> None:
    sink = Sink()
    sender, _ = sender_of(client, sink)
    await store_of(client).append([entry("r1")])
    await sender.send()

    await client.flushall()
    await store_of(client).append([entry("r2")])
    await sender.send()

    assert [request_id for request_id, _, _ in sink.got] == ["r1", "r2"]


async def test_no_more_is_taken_at_once_than_asked_for_and_the_rest_comes_next(client: redis.asyncio.Redis) -> None:
    outbox = RedisOutbox(client, NOMINATIONS, router="a")
    await outbox.put([b"%d" % i for i in range(7)])
    seen = []

    for _ in range(3):
        letters = await outbox.take(3)
        assert [letter.text for letter in await outbox.take(3)] == [letter.text for letter in letters]
        await outbox.done(letters)
        seen += [letter.text for letter in letters]

    assert seen == [b"%d" % i for i in range(7)]


async def test_a_candidate_that_is_refused_does_not_hold_up_the_others(client: redis.asyncio.Redis) -> None:
    await store_of(client).append([entry("r1"), entry("bad"), entry("r3")])
    sink = Sink()
    sink.refuses = "bad"
    sender, _ = sender_of(client, sink)

    await sender.send()

    assert [name for name, _, _ in sink.got] == ["r1", "r3"]
    assert await sender.send() == 0


async def test_a_nomination_whose_conversation_is_gone_is_counted(client: redis.asyncio.Redis) -> None:
    await store_of(client).append([entry("r1", kept=False)])
    sender, lost = sender_of(client, Sink())

    await sender.send()

    assert lost == [1]


async def test_the_outbox_is_bounded_and_counts_what_it_drops(client: redis.asyncio.Redis) -> None:
    store, outbox = store_of(client), RedisOutbox(client, NOMINATIONS, router="a")
    for start in range(0, MOST + 3, 1000):
        await store.append([entry(f"r{i}", kept=False) for i in range(start, min(start + 1000, MOST + 3))])

    assert await client.xlen(NOMINATIONS) == MOST
    assert await outbox.dropped() == 3
    assert orjson.loads((await outbox.take(1))[0].text)["request_id"] == "r3"


async def test_an_opinion_nominates_once_however_often_it_is_sent(client: redis.asyncio.Redis) -> None:
    await store_of(client).append([entry("r1", cause="")])
    opinions = RedisFeedbackStore(client, retention_s=3600)
    right = Feedback("demonstration", "Ask ann@example.org.", 1.0).checked().redacted()
    for _ in range(2):
        await opinions.add(entry("r1").record, right, right.key(""))

    letters = await RedisOutbox(client, NOMINATIONS, router="a").take(10)

    nominations = [Nomination(**orjson.loads(letter.text)) for letter in letters]
    assert [(n.cause, n.demonstration) for n in nominations] == [("DEMONSTRATION", "Ask [EMAIL].")]


async def test_no_secret_of_a_conversation_reaches_the_store(client: redis.asyncio.Redis) -> None:
    recorder = Recorder(store_of(client), flush_s=0.01, on_drop=lambda _: None)
    recorder.add(entry("r1", draft="Write to ann@example.org."))

    assert await recorder.flush()

    kept = await store_of(client).conversation("r1")
    assert kept is not None
    assert kept.draft == "Write to [EMAIL]."
    assert b"ann@example.org" not in b"".join(
        [v for _, f in await client.xrange("router:conversations") for v in f.values()]
    )


async def test_an_opinion_on_an_adapters_answer_is_told_to_the_registry_once(client: redis.asyncio.Redis) -> None:
    record = entry("r1").record
    record.calls = [Call("courier", "0:127.0.0.1:1", 0.0, adapter="implementer-v000002", adapter_role="implementer")]
    opinions = RedisFeedbackStore(client, retention_s=3600)
    bad = Feedback("rating", -1, 1.0)
    for _ in range(2):
        await opinions.add(record, bad, bad.key(""))

    letters = await RedisOutbox(client, OUTCOMES, router="a").take(10)

    told = [Outcome(**orjson.loads(letter.text)) for letter in letters]
    assert [(o.role, o.adapter_id, o.rating) for o in told] == [("implementer", "implementer-v000002", -1)]
