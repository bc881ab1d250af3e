"""Records in Redis: a stream, newest last, and a key per id that names the entry. Both end after the retention."""

from typing import Any, Final

import orjson
from redis.asyncio import Redis

from hivemind.servers.common.errors import invalid_field
from hivemind.servers.common.redis_client import store_errors
from hivemind.servers.router.records import Record

STREAM: Final = "router:requests"
_INDEX: Final = "router:request:"
_APPEND: Final = """
local now = redis.call('TIME')
local oldest = (tonumber(now[1]) - tonumber(ARGV[1])) * 1000
for i = 2, #ARGV, 2 do
  local id = redis.call('XADD', KEYS[1], 'MINID', '~', string.format('%d', oldest), '*', 'r', ARGV[i + 1])
  redis.call('SET', ARGV[i], id, 'EX', ARGV[1], 'NX')
end
return redis.status_reply('OK')
"""


class RedisRecordStore:
    """Implements ports.RecordStore."""

    def __init__(self, redis: Redis, *, retention_s: int) -> None:
        self._redis, self._retention_s = redis, retention_s
        self._append = redis.register_script(_APPEND)

    async def append(self, records: list[Record]) -> None:
        """See ports.RecordStore. A batch is one round trip."""
        args: list[Any] = [self._retention_s]
        for record in records:
            args += (_INDEX + record.request_id, orjson.dumps(record))
        with store_errors():
            await self._append(keys=[STREAM], args=args)

    async def get(self, request_id: str) -> Record | None:
        """See ports.RecordStore."""
        with store_errors():
            entry = await self._redis.get(_INDEX + request_id)
            if entry is None:
                return None
            found = await self._redis.xrange(STREAM, entry, entry, count=1)
        return _record(found[0][1]) if found else None

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


def _record(fields: Any) -> Record:
    return Record.from_json(orjson.loads(fields[b"r"]))


def _checked_token(token: str) -> str:
    milliseconds, _, sequence = token.partition("-")
    if token and not (milliseconds.isdecimal() and sequence.isdecimal() and token.isascii() and len(token) < 40):
        raise invalid_field("page_token", "is not one that ListRequests gave")
    return token
