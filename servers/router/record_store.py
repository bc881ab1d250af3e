"""Records in Redis: a stream, newest last, and a key per id that names the entry. Both end after the retention.

Conversations lie in a stream of their own, bounded in age and number. Nominations go into the outbox to the Arbiter,
the Judge's lessons into the counts of opinions and its scores into the stream of them, in the same script, so that none
is lost between the two. A batch that is stored once more, because its first answer got lost, teaches nothing again.
"""

from collections.abc import Iterator
from typing import Any, Final

import orjson
from redis.asyncio import Redis

from hivemind.servers.common.errors import invalid_field
from hivemind.servers.common.redis_client import store_errors
from hivemind.servers.router.conversation import Conversation
from hivemind.servers.router.opinions import OPINIONS, TELL, verdicts_of
from hivemind.servers.router.outbox import NOMINATIONS, OUTCOMES, PUT, SAMPLED
from hivemind.servers.router.recorder import Entry
from hivemind.servers.router.records import Record
from hivemind.servers.router.skill_store import LEARN, SKILLS, field_of

STREAM: Final = "router:requests"
CONVERSATIONS: Final = "router:conversations"
_INDEX: Final = "router:request:"
_APPEND: Final = (
    PUT
    + LEARN
    + TELL
    + f"local sampled = '{SAMPLED}'"
    + """
local now = redis.call('TIME')
local function since(seconds) return string.format('%d', (tonumber(now[1]) - tonumber(seconds)) * 1000) end
local retention, kept_for, kept_most = ARGV[1], ARGV[2], ARGV[3]
local talks = false
for i = 4, #ARGV, 7 do
  local ids = redis.call('XADD', KEYS[1], 'MINID', '~', since(retention), '*', 'r', ARGV[i + 1])
  if ARGV[i + 2] ~= '' then
    talks = true
    ids = ids .. ' ' .. redis.call('XADD', KEYS[2], 'MAXLEN', '~', kept_most, '*', 'c', ARGV[i + 2])
  end
  if redis.call('SET', ARGV[i], ids, 'EX', retention, 'NX') then
    if ARGV[i + 4] ~= '' then
      for _, l in ipairs(cjson.decode(ARGV[i + 4])) do learn(KEYS[4], l[1], l[2], l[3]) end
    end
    if ARGV[i + 6] ~= '' then
      for _, o in ipairs(cjson.decode(ARGV[i + 6])) do tell(KEYS[6], o) end
    end
  end
  if ARGV[i + 3] ~= '' then
    put(KEYS[3], ARGV[i + 3])
    redis.call('SET', sampled .. string.sub(ARGV[i], #'router:request:' + 1), 1, 'EX', kept_for)
  end
  if ARGV[i + 5] ~= '' then
    for _, letter in ipairs(cjson.decode(ARGV[i + 5])) do put(KEYS[5], letter) end
  end
end
if talks then redis.call('XTRIM', KEYS[2], 'MINID', '~', since(kept_for)) end
return redis.status_reply('OK')
"""
)


class RedisRecordStore:
    """Implements ports.RecordStore. Times in seconds; `conversations`: how many are kept at the most, about."""

    def __init__(self, redis: Redis, *, retention_s: int, conversation_retention_s: int, conversations: int) -> None:
        self._redis = redis
        self._limits = (retention_s, conversation_retention_s, conversations)
        self._append = redis.register_script(_APPEND)

    async def append(self, entries: list[Entry]) -> None:
        """See ports.RecordStore. A batch is one round trip."""
        args: list[Any] = [*self._limits]
        for entry in entries:
            args += (
                _INDEX + entry.record.request_id,
                orjson.dumps(entry.record),
                b"" if entry.conversation is None else orjson.dumps(entry.conversation),
                b"" if entry.nomination is None else orjson.dumps(entry.nomination),
                orjson.dumps(list(_lessons(entry))) if entry.lessons else b"",
                orjson.dumps([orjson.dumps(o).decode() for o in entry.outcomes]) if entry.outcomes else b"",
                orjson.dumps([orjson.dumps(o).decode() for o in verdicts_of(entry.record)])
                if entry.record.judged
                else b"",
            )
        with store_errors():
            await self._append(keys=[STREAM, CONVERSATIONS, NOMINATIONS, SKILLS, OUTCOMES, OPINIONS], args=args)

    async def get(self, request_id: str) -> Record | None:
        """See ports.RecordStore."""
        found = await self._entry(STREAM, request_id, 0)
        return None if found is None else _record(found)

    async def conversation(self, request_id: str) -> Conversation | None:
        """See ports.RecordStore."""
        found = await self._entry(CONVERSATIONS, request_id, 1)
        return None if found is None else Conversation.from_json(orjson.loads(found[b"c"]))

    async def _entry(self, stream: str, request_id: str, place: int) -> Any:
        """The fields of the entry that the index names at a place: 0 the record, 1 the conversation."""
        with store_errors():
            index: Any = await self._redis.get(_INDEX + request_id)
            ids = index.split() if index is not None else []
            found: Any = await self._redis.xrange(stream, ids[place], ids[place]) if len(ids) > place else []
        return found[0][1] if found else None

    async def list(self, *, page_size: int, page_token: str, tenant: str) -> tuple[list[Record], str]:
        """See ports.RecordStore. A token is the id of the last entry that was looked at."""
        last = _checked_token(page_token)
        records: list[Record] = []
        while len(records) < page_size:
            with store_errors():
                found: Any = await self._redis.xrevrange(STREAM, f"({last}" if last else "+", "-", count=page_size)
            if not found:
                return records, ""
            for entry, fields in found:
                last = entry.decode("ascii")
                record = _record(fields)
                if not tenant or record.tenant == tenant:
                    records.append(record)
                if len(records) == page_size:
                    break
        return records, last


def _lessons(entry: Entry) -> Iterator[tuple[str, float, float]]:
    """Field, weight and surplus of each, as the script takes them."""
    record = entry.record
    for lesson in entry.lessons:
        yield field_of(record.tenant, lesson.alias, record.domain), lesson.weight, lesson.surplus


def _record(fields: Any) -> Record:
    return Record.from_json(orjson.loads(fields[b"r"]))


def _checked_token(token: str) -> str:
    milliseconds, _, sequence = token.partition("-")
    if token and not (milliseconds.isdecimal() and sequence.isdecimal() and token.isascii() and len(token) < 40):
        raise invalid_field("page_token", "is not one that ListRequests gave")
    return token
