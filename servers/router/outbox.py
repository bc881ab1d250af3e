"""Nominations on their way to the Arbiter, in Redis: what one Router put in is sent even if that Router dies.

At most MOST wait; when the Arbiter is away for long the oldest are dropped and counted. A Router reads what nobody else
has, and what another took and did not finish within a minute.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from hivemind.servers.common.redis_client import store_errors
from hivemind.servers.router.nomination import Nomination

OUTBOX: Final = "router:nominations"
MOST: Final = 10_000
_DROPPED: Final = "router:nominations:dropped"
_GROUP: Final = "routers"
_ABANDONED_MS: Final = 60_000
PUT: Final = f"""
local function put(key, nomination)
  if redis.call('XLEN', key) >= {MOST} then
    redis.call('INCRBY', '{_DROPPED}', redis.call('XTRIM', key, 'MAXLEN', {MOST - 1}))
  end
  redis.call('XADD', key, '*', 'n', nomination)
end
"""
"""The Lua function by which other scripts put a nomination in."""


@dataclass(frozen=True, slots=True)
class Letter:
    """A nomination, and its place in the outbox."""

    place: bytes
    nomination: Nomination


class RedisOutbox:
    """The outbox as one Router sees it; `router` names it among the others."""

    def __init__(self, redis: Redis, *, router: str) -> None:
        self._redis, self._router = redis, router

    async def take(self, count: int) -> list[Letter]:
        """Nominations to send: its own that it did not finish, abandoned ones, then new ones; MeshError otherwise."""
        with store_errors():
            await self._join()
            own: Any = await self._redis.xreadgroup(_GROUP, self._router, {OUTBOX: "0"}, count=count)
            found = own[0][1] if own else []
            if len(found) < count:
                claimed: Any = await self._redis.xautoclaim(
                    OUTBOX, _GROUP, self._router, min_idle_time=_ABANDONED_MS, count=count - len(found)
                )
                known = {place for place, _ in found}
                found += [(place, fields) for place, fields in claimed[1] if place not in known]
            if len(found) < count:
                new: Any = await self._redis.xreadgroup(_GROUP, self._router, {OUTBOX: ">"}, count=count - len(found))
                found += new[0][1] if new else []
            dropped = [place for place, fields in found if not fields]
            if dropped:
                await self._redis.xack(OUTBOX, _GROUP, *dropped)
        return [Letter(place, Nomination(**orjson.loads(fields[b"n"]))) for place, fields in found if fields]

    async def done(self, letters: Sequence[Letter]) -> None:
        """Takes nominations out for good."""
        places = [letter.place for letter in letters]
        with store_errors():
            pipe = self._redis.pipeline(transaction=True)
            pipe.xack(OUTBOX, _GROUP, *places)
            pipe.xdel(OUTBOX, *places)
            await pipe.execute()

    async def dropped(self) -> int:
        """How many were dropped for want of room since the store was made."""
        with store_errors():
            return int(await self._redis.get(_DROPPED) or 0)

    async def _join(self) -> None:
        try:
            await self._redis.xgroup_create(OUTBOX, _GROUP, id="0", mkstream=True)
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise
