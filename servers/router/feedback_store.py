"""Opinions in Redis: a hash a request, a stream of all for export, and a hash of decayed counts for all Routers."""

import asyncio
from collections.abc import Sequence
from typing import Any, Final

import orjson
import structlog
from redis.asyncio import Redis

from hivemind.servers.common.errors import MeshError, invalid_field
from hivemind.servers.common.redis_client import store_errors
from hivemind.servers.router.feedback import Feedback, expected_quality, judged_alias
from hivemind.servers.router.nomination import after_feedback
from hivemind.servers.router.opinions import OPINIONS, TELL, opinion_of
from hivemind.servers.router.outbox import NOMINATIONS, OUTCOMES, PUT
from hivemind.servers.router.outcomes import rated
from hivemind.servers.router.records import Record
from hivemind.servers.router.skill_store import LEARN, SKILLS, field_of, key_of, opinions_of
from hivemind.servers.router.skills import Key, Opinions, Skills

_log = structlog.get_logger()

STREAM: Final = "router:feedback"
OPINIONS_MAX: Final = 32
_PORTION: Final = 500
_OF_REQUEST: Final = "router:feedback:"
_ADD: Final = (
    PUT
    + LEARN
    + TELL
    + """
local before = redis.call('HGET', KEYS[1], ARGV[1])
if before then return before end
if redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[4]) then return false end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[3])
local now = redis.call('TIME')
local oldest = string.format('%d', (tonumber(now[1]) - tonumber(ARGV[3])) * 1000)
redis.call('XADD', KEYS[2], 'MINID', '~', oldest, '*', 'f', ARGV[5])
if ARGV[7] ~= '' then learn(KEYS[3], ARGV[6], 1, tonumber(ARGV[7])) end
if ARGV[8] ~= '' then put(KEYS[4], ARGV[8]) end
if ARGV[9] ~= '' then put(KEYS[5], ARGV[9]) end
if ARGV[10] ~= '' then tell(KEYS[6], ARGV[10]) end
return ARGV[2]
"""
)


class RedisFeedbackStore:
    """Implements feedback.FeedbackStore."""

    def __init__(self, redis: Redis, *, retention_s: int) -> None:
        self._redis, self._retention_s = redis, retention_s
        self._add = redis.register_script(_ADD)

    async def add(self, record: Record, feedback: Feedback, key: str) -> Feedback:
        """See feedback.FeedbackStore. One script: stored, listed, counted and nominated, or nothing of it."""
        stored = orjson.dumps(feedback)
        exported = orjson.dumps(
            {"request_id": record.request_id, "tenant": record.tenant, "domain": record.domain,
             "kind": feedback.kind, "value": feedback.value, "created": feedback.created}
        )  # fmt: skip
        field = field_of(record.tenant, judged_alias(record), record.domain)
        expected = expected_quality(record)
        outcome = rated(record, int(feedback.value)) if feedback.kind == "rating" else None
        nomination = after_feedback(record.request_id, feedback.kind, feedback.value)
        opinion = opinion_of(record, feedback)
        surplus = "" if feedback.verdict is None or expected is None else f"{feedback.verdict - expected:.6f}"
        args: list[Any] = [
            key, stored, self._retention_s, OPINIONS_MAX, exported, field, surplus,
            b"" if nomination is None else orjson.dumps(nomination),
            b"" if outcome is None else orjson.dumps(outcome),
            b"" if opinion is None else orjson.dumps(opinion),
        ]  # fmt: skip
        keys = [_OF_REQUEST + record.request_id, STREAM, SKILLS, NOMINATIONS, OUTCOMES, OPINIONS]
        with store_errors():
            found = await self._add(keys=keys, args=args)
        if not found:
            raise invalid_field("request_id", f"{OPINIONS_MAX} opinions on this request are stored already")
        return Feedback(**orjson.loads(found))

    async def of(self, request_ids: Sequence[str]) -> list[list[Feedback]]:
        """See feedback.FeedbackStore."""
        pipe = self._redis.pipeline(transaction=False)
        for request_id in request_ids:
            pipe.hvals(_OF_REQUEST + request_id)
        with store_errors():
            found: Any = await pipe.execute()
        return [sorted((Feedback(**orjson.loads(f)) for f in each), key=lambda f: f.created) for each in found]

    async def follow(self, skills: Skills, interval_s: float) -> None:
        """Keeps a snapshot of the counts up to date, for ever; the last one holds while Redis is away."""
        while True:
            try:
                skills.replace(await self._counts())
            except MeshError as error:
                _log.warning("skills_wait", reason=error.reason)
            await asyncio.sleep(interval_s)

    async def _counts(self) -> dict[Key, Opinions]:
        """All counts, read in portions: requests to models share the event loop."""
        with store_errors():
            return {key_of(k): opinions_of(v) async for k, v in self._redis.hscan_iter(SKILLS, count=_PORTION)}
