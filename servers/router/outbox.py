"""What a Router has to tell other servers, in Redis: what one Router put in is sent even if that Router dies.

An outbox is a stream of at most MOST letters; when the receiver is away for long the oldest are dropped and counted. A
Router reads what nobody else has, and what another took and did not finish within a minute.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from hivemind.servers.common.redis_client import store_errors

NOMINATIONS: Final = "router:nominations"
"""Nomination, for the Arbiter."""
OUTCOMES: Final = "router:outcomes"
"""Outcome, for the AdapterRegistry."""
SAMPLED: Final = "router:sampled:"
"""Prefix of the keys of requests that were nominated."""
MOST: Final = 10_000
_DROPPED: Final = ":dropped"
_GROUP: Final = "routers"
_ABANDONED_MS: Final = 60_000
PUT: Final = f"""
local function put(key, letter)
  if redis.call('XLEN', key) >= {MOST} then
    redis.call('INCRBY', key .. '{_DROPPED}', redis.call('XTRIM', key, 'MAXLEN', {MOST - 1}))
  end
  redis.call('XADD', key, '*', 'l', letter)
end
"""
"""The Lua function by which other scripts put a letter in."""


@dataclass(frozen=True, slots=True)
class Letter:
    """What is to be told, in JSON, and its place in the outbox."""

    place: bytes
    text: bytes


class RedisOutbox:
    """One outbox as one Router sees it; `router` names it among the others."""

    def __init__(self, redis: Redis, key: str, *, router: str) -> None:
        self._redis, self._key, self._router = redis, key, router
        self._put = redis.register_script(PUT + "for _, letter in ipairs(ARGV) do put(KEYS[1], letter) end")

    async def put(self, texts: Sequence[bytes]) -> None:
        """Puts letters in. MeshError if it cannot."""
        with store_errors():
            await self._put(keys=[self._key], args=list(texts))

    async def take(self, count: int) -> list[Letter]:
        """Letters to send: its own that it did not finish, abandoned ones, then new ones; MeshError otherwise."""
        with store_errors():
            try:
                found = await self._look(count)
            except ResponseError as error:
                if "NOGROUP" not in str(error):
                    raise
                await self._join()
                found = await self._look(count)
            dropped = [place for place, fields in found if not fields]
            if dropped:
                await self._redis.xack(self._key, _GROUP, *dropped)
        return [Letter(place, fields[b"l"]) for place, fields in found if fields]

    async def done(self, letters: Sequence[Letter]) -> None:
        """Takes letters out for good."""
        places = [letter.place for letter in letters]
        with store_errors():
            pipe = self._redis.pipeline(transaction=True)
            pipe.xack(self._key, _GROUP, *places)
            pipe.xdel(self._key, *places)
            await pipe.execute()

    async def dropped(self) -> int:
        """How many were dropped for want of room since the store was made."""
        with store_errors():
            return int(await self._redis.get(self._key + _DROPPED) or 0)

    async def _look(self, count: int) -> list[tuple[bytes, Any]]:
        """What `take` takes, in one round trip, as it is done twice a second; more than `count` comes next time."""
        pipe = self._redis.pipeline(transaction=False)
        pipe.xreadgroup(_GROUP, self._router, {self._key: "0"}, count=count)
        pipe.xautoclaim(self._key, _GROUP, self._router, min_idle_time=_ABANDONED_MS, count=count)
        pipe.xreadgroup(_GROUP, self._router, {self._key: ">"}, count=count)
        own, claimed, new = await pipe.execute()
        rows = [*_rows(own), *claimed[1], *_rows(new)]
        return list(dict(rows).items())[:count]

    async def _join(self) -> None:
        try:
            await self._redis.xgroup_create(self._key, _GROUP, id="0", mkstream=True)
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise


def _rows(answer: Any) -> list[tuple[bytes, Any]]:
    return list(answer[0][1]) if answer else []
