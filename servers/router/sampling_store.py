"""Nominations on request: recent answers of a domain, each once, into the outbox to the Arbiter."""

from collections.abc import Callable, Sequence
from typing import Any, Final

import orjson
from redis.asyncio import Redis

from hivemind.servers.common.errors import MeshError
from hivemind.servers.common.redis_client import store_errors
from hivemind.servers.router.conversation import Conversation
from hivemind.servers.router.nomination import Nomination
from hivemind.servers.router.outbox import NOMINATIONS, PUT, SAMPLED
from hivemind.servers.router.record_store import CONVERSATIONS

LOOKED_AT: Final = 2_000
"""How many of the newest conversations are looked through."""
_PAGE: Final = 20
"""How many are read at once: requests to models share the event loop."""
_NOMINATE: Final = (
    PUT
    + f"local sampled = '{SAMPLED}'"
    + """
-- KEYS: outbox. ARGV: fencing token or 0, idempotency key or '', its fingerprint, how long to remember in seconds, how
-- many at most, then pairs of request id and letter. Answers {'OK', ids}, {'FENCED', newest token} or {'REUSED'}.
local key = ARGV[2] ~= '' and 'router:repeat:nominate:' .. ARGV[2] or nil
if key then
  local before = redis.call('HMGET', key, 'fingerprint', 'ids')
  if before[1] then
    if before[1] ~= ARGV[3] then return { 'REUSED' } end
    return { 'OK', before[2] }
  end
end
local token = tonumber(ARGV[1])
if token > 0 then
  local newest = tonumber(redis.call('GET', 'router:fence') or '0')
  if token < newest then return { 'FENCED', tostring(newest) } end
  redis.call('SET', 'router:fence', ARGV[1])
end
local ids = {}
for i = 6, #ARGV, 2 do
  if #ids >= tonumber(ARGV[5]) then break end
  if redis.call('SET', sampled .. ARGV[i], 1, 'EX', ARGV[4], 'NX') then
    put(KEYS[1], ARGV[i + 1])
    ids[#ids + 1] = ARGV[i]
  end
end
local answer = table.concat(ids, ' ')
if key then
  redis.call('HSET', key, 'fingerprint', ARGV[3], 'ids', answer)
  redis.call('EXPIRE', key, 86400)
end
return { 'OK', answer }
"""
)


class RedisSamplingStore:
    """Nominates. `consents`: whether a tenant may be learnt from now; `kept_s`: how long a conversation is kept."""

    def __init__(self, redis: Redis, *, consents: Callable[[str], bool], kept_s: int) -> None:
        self._redis, self._consents, self._kept_s = redis, consents, kept_s
        self._nominate = redis.register_script(_NOMINATE)

    async def nominate(
        self, domain: str, count: int, value: float, *, fencing_token: int, idempotency_key: str
    ) -> list[str]:
        """Puts nominations of the newest answers of a domain into the outbox; their ids. STALE_FENCING_TOKEN where a
        newer leader has nominated."""
        found = await self._recent(domain, count)
        args: list[Any] = [fencing_token, idempotency_key, f"{domain} {count} {value}", self._kept_s, count]
        for request_id in found:
            args += (request_id, orjson.dumps(Nomination(request_id, "SAMPLE", value)))
        with store_errors():
            kind, *rest = await self._nominate(keys=[NOMINATIONS], args=args)
        if kind == b"REUSED":
            message = "this idempotency key was used for another request; take a new one"
            raise MeshError("IDEMPOTENCY_KEY_REUSED", message)
        if kind == b"FENCED":
            message = "a newer leader has nominated since; this one no longer leads"
            raise MeshError("STALE_FENCING_TOKEN", message, metadata={"newest_token": rest[0].decode()})
        return str(rest[0].decode()).split()

    async def _recent(self, domain: str, count: int) -> Sequence[str]:
        """Requests of the domain that were not nominated yet, newest first, by the newest conversations: `count` and
        perhaps some more."""
        found: list[str] = []
        last = "+"
        for _ in range(LOOKED_AT // _PAGE):
            with store_errors():
                rows: Any = await self._redis.xrevrange(CONVERSATIONS, last, "-", count=_PAGE)
            if not rows:
                break
            last = f"({rows[-1][0].decode()}"
            talks = (Conversation.from_json(orjson.loads(fields[b"c"])) for _, fields in rows)
            found += await self._fresh([t.request_id for t in talks if t.domain == domain and self._consents(t.tenant)])
            if len(found) >= count:
                break
        return found

    async def _fresh(self, request_ids: list[str]) -> list[str]:
        """Those that were not nominated yet."""
        if not request_ids:
            return []
        with store_errors():
            marks: Any = await self._redis.mget([SAMPLED + i for i in request_ids])
        return [i for i, mark in zip(request_ids, marks, strict=True) if mark is None]
