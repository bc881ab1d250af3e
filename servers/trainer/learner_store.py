"""The inbox and the state of online learners in Redis, as the Trainer sees them; see learner_keys.py."""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import resources
from itertools import chain
from typing import Any, Final

import orjson
from redis.asyncio import Redis

from hivemind.servers.common.errors import MeshError
from hivemind.servers.common.redis_client import store_errors
from hivemind.servers.trainer.learner import Limits, Seen, Steering, Version
from hivemind.servers.trainer.learner_keys import Keys, LearnerStatus
from hivemind.servers.trainer.lesson import Lesson
from hivemind.servers.trainer.ports import Call

_FENCE: Final = "trainer:fence"
_BUSY_RETRY_S: Final = 30.0
_REST_MS: Final = 15_000
_RENEW: Final = """
local owner = redis.call('GET', KEYS[1])
if owner and owner ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
_RELEASE: Final = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"


class RedisLearners:
    """Implements learner.Learners."""

    def __init__(self, redis: Redis, limits: Limits) -> None:
        self._redis, self._limits = redis, limits
        folder = resources.files("hivemind.servers.trainer")
        self._inbox = redis.register_script((folder / "inbox.lua").read_text())
        self._steer = redis.register_script((folder / "steer.lua").read_text())
        self._renew, self._release = redis.register_script(_RENEW), redis.register_script(_RELEASE)

    async def submit(self, role: str, lessons: Sequence[Lesson], token: int, call: Call) -> Mapping[str, int]:
        """See learner.Learners."""
        keys = Keys(role)
        limits = self._limits
        fields = await asyncio.to_thread(_fields, lessons)
        with store_errors():
            answer: Any = await self._inbox(
                keys=[keys.inbox, keys.known, keys.answers, keys.shares, _FENCE, _again(call),
                      keys.trust, keys.distrusted, keys.compared],
                args=[call.fingerprint, token, limits.inbox, limits.of_tenant, limits.remembered, limits.patience,
                      *fields],
            )  # fmt: skip
        _refuse(answer, token)
        if answer[0] == b"FULL":
            message = f"{int(answer[1])} examples wait already; retry when some have been learnt"
            raise MeshError("OVERLOADED", message, retry_after_s=_BUSY_RETRY_S)
        return Counter(outcome.decode() for outcome in answer[1:])

    async def steer(self, role: str, what: Steering, reason: str, token: int, call: Call) -> None:
        """See learner.Learners."""
        with store_errors():
            answer: Any = await self._steer(
                keys=[Keys(role).head, _FENCE, _again(call)], args=[call.fingerprint, token, what, reason]
            )
        _refuse(answer, token)

    async def seen(self, role: str) -> Seen:
        """See learner.Learners."""
        keys = Keys(role)
        with store_errors():
            pipeline = self._redis.pipeline(transaction=True)
            pipeline.hgetall(keys.head)
            pipeline.xlen(keys.inbox)
            pipeline.exists(keys.live)
            pipeline.smembers(keys.distrusted)
            head, waiting, live, distrusted = await pipeline.execute()
        status = LearnerStatus.from_json(head[b"status"]) if head.get(b"status") else LearnerStatus()
        return Seen(
            status, int(waiting), bool(live), paused=head.get(b"paused") == b"1",
            reason=head.get(b"reason", b"").decode(), note=head.get(b"note", b"").decode(),
            distrusted=tuple(sorted(name.decode() for name in distrusted)),
        )  # fmt: skip

    async def hold(self, role: str, owner: str, lease_s: float) -> bool:
        """See learner.Learners."""
        with store_errors():
            return bool(await self._renew(keys=[Keys(role).lease], args=[owner, round(lease_s * 1000)]))

    async def let_go(self, role: str, owner: str) -> None:
        """See learner.Learners."""
        with store_errors():
            await self._release(keys=[Keys(role).lease], args=[owner])

    async def rest(self, role: str) -> None:
        """See learner.Learners."""
        with store_errors():
            await self._redis.set(Keys(role).live, "0", px=_REST_MS)

    async def gone(self, role: str) -> None:
        """See learner.Learners."""
        with store_errors():
            await self._redis.delete(Keys(role).live)

    async def published(self, role: str, adapter_id: str, at: float) -> None:
        """See learner.Learners."""
        with store_errors():
            await self._redis.zadd(Keys(role).published, {adapter_id: at}, nx=True)

    async def versions(self, role: str) -> Sequence[Version]:
        """See learner.Learners."""
        with store_errors():
            found: Any = await self._redis.zrange(Keys(role).published, 0, -1, withscores=True)
        return [Version(name.decode(), at) for name, at in found]

    async def forget(self, role: str, adapter_id: str) -> None:
        """See learner.Learners."""
        with store_errors():
            await self._redis.zrem(Keys(role).published, adapter_id)

    async def note(self, role: str, note: str) -> None:
        """See learner.Learners."""
        with store_errors():
            await self._redis.hset(Keys(role).head, "note", note)


def _fields(lessons: Sequence[Lesson]) -> list[Any]:
    """What inbox.lua takes of lessons. Marks and claims of many long texts take too long for the event loop."""
    each = (
        (n.id, n.question_mark, n.answer_mark, n.tenant, orjson.dumps(n.claims), int(n.checked), n.to_json())
        for n in lessons
    )
    return list(chain.from_iterable(each))


def _again(call: Call) -> str:
    return f"trainer:repeat:{call.key}" if call.key else ""


def _refuse(answer: Sequence[Any], token: int) -> None:
    if answer[0] == b"REUSED":
        raise MeshError("IDEMPOTENCY_KEY_REUSED", "this idempotency key was used for another request; take a new one")
    if answer[0] == b"STALE":
        newest = answer[1].decode()
        message = f"the fencing token {token} is older than {newest}, the newest leader's"
        raise MeshError("STALE_FENCING_TOKEN", message, metadata={"newest": newest})
