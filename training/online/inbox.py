"""The learner's side of Redis: lessons that wait, how it is steered, and where it says how it stands.

An absent store never stops the learner: it goes on with what it has.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from hivemind.servers.trainer.learner_keys import Keys, LearnerStatus
from hivemind.servers.trainer.lesson import Lesson

START: Final = "0-0"
_LIVE_MS: Final = 60_000
"""Longer than a step or a check takes on a busy machine."""
_PURGE: Final = 1000


@dataclass(frozen=True, slots=True)
class Waiting:
    """A lesson in the inbox, its place there, and when it came (Unix seconds by Redis's clock). `replaces`: the id of a
    lesson that it shows to be wrong, empty for none."""

    place: str
    came: float
    lesson: Lesson | None
    replaces: str = ""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What callers want: that it pauses, and how often they asked for a drain; and of which tenants nothing unchecked
    is to be learnt."""

    paused: bool = False
    drains: int = 0
    distrusted: frozenset[str] = frozenset()


class Inbox:
    """The inbox of one role. Methods answer None, or do nothing, while the store is away."""

    def __init__(self, url: str, role: str, *, timeout_s: float) -> None:
        self._keys = Keys(role)
        self._redis = Redis.from_url(
            url, socket_timeout=timeout_s, socket_connect_timeout=min(1.0, timeout_s), retry=Retry(NoBackoff(), 1)
        )

    def waiting(self, after: str, count: int) -> Sequence[Waiting]:
        """The next lessons after a place; one that cannot be read has None."""
        try:
            found: Any = self._redis.xrange(self._keys.inbox, f"({after}", "+", count=count)
        except (RedisError, OSError):
            return ()
        return [
            Waiting(place.decode(), _seconds(place), _lesson(entry), entry.get(b"replaces", b"").decode())
            for place, entry in found
        ]

    def taken_over(self, place: str) -> None:
        """Drops the lessons up to a place: they are in the learner's own state, on its disk."""
        while self._drop("-", place, lambda _: True) == _PURGE:
            pass

    def forget(self, names: Collection[str]) -> int:
        """Drops lessons by their ids; how many there were."""
        return self._drop("-", "+", lambda lesson: lesson is None or lesson.id in names)

    def wishes(self, before: Wishes) -> Wishes:
        """What callers want now; as `before` where the store is away."""
        try:
            pipeline = self._redis.pipeline(transaction=True)
            pipeline.hmget(self._keys.head, "paused", "drain")
            pipeline.smembers(self._keys.distrusted)
            (paused, drains), distrusted = pipeline.execute()
        except (RedisError, OSError):
            return before
        return Wishes(paused == b"1", int(drains or 0), frozenset(name.decode() for name in distrusted))

    def tell(self, status: LearnerStatus) -> None:
        """Says how the learner stands, and that it lives."""
        try:
            pipeline = self._redis.pipeline(transaction=True)
            pipeline.hset(self._keys.head, "status", status.to_json())
            pipeline.set(self._keys.live, "1", px=_LIVE_MS)
            pipeline.execute()
        except (RedisError, OSError):
            return

    def leave(self) -> None:
        """Says that it ends."""
        try:
            self._redis.delete(self._keys.live)
        except (RedisError, OSError):
            return

    def _drop(self, low: str, high: str, wanted: Any) -> int:
        try:
            found: Any = self._redis.xrange(self._keys.inbox, low, high, count=_PURGE)
            entries = [(place, _lesson(entry)) for place, entry in found]
            gone = [(place, lesson) for place, lesson in entries if wanted(lesson)]
            if not gone:
                return 0
            pipeline = self._redis.pipeline(transaction=True)
            pipeline.xdel(self._keys.inbox, *(place for place, _ in gone))
            for tenant, count in Counter(n.tenant for _, n in gone if n is not None).items():
                pipeline.hincrby(self._keys.shares, tenant, -count)
            pipeline.execute()
        except (RedisError, OSError):
            return 0
        return len(gone)


def _lesson(entry: dict[bytes, bytes]) -> Lesson | None:
    try:
        return Lesson.from_json(entry[b"lesson"])
    except (ValueError, KeyError, TypeError):
        return None


def _seconds(place: bytes) -> float:
    return int(place.partition(b"-")[0]) / 1000
