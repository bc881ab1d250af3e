"""Opinions in Redis, read page by page."""

from collections.abc import Sequence
from typing import Any

import orjson
from redis.asyncio import Redis

from hivemind.servers.common.errors import invalid_field
from hivemind.servers.common.redis_client import store_errors
from hivemind.servers.router.opinions import OPINIONS, Opinion


class RedisOpinionStore:
    """Reads the stream; the stores of records and feedback write it."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def after(self, place: str, count: int) -> tuple[Sequence[Opinion], str]:
        """The next opinions behind a place (empty: the oldest that is kept), and the place behind them."""
        begin = f"({_checked(place)}" if place else "-"
        with store_errors():
            rows: Any = await self._redis.xrange(OPINIONS, begin, "+", count=count)
        found = [Opinion(**orjson.loads(fields[b"o"])) for _, fields in rows]
        return found, rows[-1][0].decode() if rows else place


def _checked(token: str) -> str:
    milliseconds, _, sequence = token.partition("-")
    if not (milliseconds.isdecimal() and sequence.isdecimal() and token.isascii() and len(token) < 40):
        raise invalid_field("page_token", "is not one that ListOpinions gave")
    return token
