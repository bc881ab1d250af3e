"""The Governor's store in Redis. Each change is one Lua script; the scripts say how the keys look."""

import hashlib
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import resources
from typing import Any, Final

import orjson
from redis.asyncio import Redis

from hivemind.servers.common.errors import MeshError
from hivemind.servers.common.redis_client import store_errors
from hivemind.servers.governor.config import EVERYONE, Config
from hivemind.servers.governor.money import BudgetState, Grant, Row, Settlement, Wish

_WATCHERS: Final = "governor:watchers"
WATCHER_TTL_S: Final = 6.0
_WHATS: Final = frozenset({"cost_micros", "requests", "prompt_tokens", "completion_tokens", "master_cost_micros"})


class RedisStore:
    """Implements ports.Store. `shift_ms` moves the scripts' clock: 0 but in tests."""

    def __init__(self, redis: Redis, *, shift_ms: Callable[[], int] = lambda: 0) -> None:
        self._redis, self._shift_ms = redis, shift_ms
        folder = resources.files("hivemind.servers.governor")
        prelude = (folder / "prelude.lua").read_text()
        names = ("reserve", "settle", "state", "configure")
        self._scripts = {n: redis.register_script(prelude + (folder / f"{n}.lua").read_text()) for n in names}

    async def load(self) -> Config | None:
        """See ports.Store."""
        with store_errors():
            raw = await self._redis.get("governor:config")
        return Config.from_json(orjson.loads(raw)) if raw is not None else None

    async def save(self, old: Config | None, new: Config, *, idempotency_key: str, fingerprint: str) -> Config | None:
        """See ports.Store."""
        changed = old is None or new.revision != old.revision
        args: list[Any] = [
            str(old.revision) if old is not None else "",
            orjson.dumps(new),
            str(new.revision),
            orjson.dumps(new.history[0]) if changed and new.history else "",
            idempotency_key,
            fingerprint,
        ]
        for budget in new.budgets:
            args += ("|".join(budget.key), budget.limit_micros)
        answer = await self._run("configure", args)
        if answer[0] == b"REUSED":
            raise _reused()
        if answer[0] == b"REPEATED":
            return Config.from_json(orjson.loads(answer[1]))
        return new if answer[0] == b"OK" else None

    async def repeated(self, idempotency_key: str, fingerprint: str) -> Config | None:
        """See ports.Store."""
        with store_errors():
            raw = await self._redis.get(f"governor:repeat:config:{idempotency_key}")
        if raw is None:
            return None
        first, config = orjson.loads(raw)
        if first != fingerprint:
            raise _reused()
        return Config.from_json(orjson.loads(config))

    async def reserve(self, wish: Wish) -> Grant:
        """See ports.Store."""
        answer = await self._run(
            "reserve",
            [
                uuid.uuid4().hex, wish.tenant, wish.purpose, wish.min_micros, wish.wanted_micros,
                round(wish.ttl_s * 1000), wish.on_expiry, wish.holder, wish.idempotency_key,
            ],
        )  # fmt: skip
        kind = answer[0]
        if kind == b"UNLIMITED":
            return Grant(unlimited=True)
        if kind == b"REUSED":
            raise _reused()
        if kind == b"EXHAUSTED":
            raise _exhausted(wish, answer)
        return Grant(answer[1].decode(), int(answer[2]), int(answer[3]) / 1000, int(answer[4]))

    async def settle(self, settlement: Settlement) -> list[str]:
        """See ports.Store."""
        args: list[Any] = [settlement.key, _fingerprint(settlement), len(settlement.items), len(settlement.updates)]
        for item in settlement.items:
            args += (item.tenant, item.model, item.purpose, item.cost_micros, item.requests)
            args += (item.prompt_tokens, item.completion_tokens, item.master_cost_micros)
        for update in settlement.updates:
            args += (update.reservation_id, update.spent_micros, int(update.close))
        answer = await self._run("settle", args)
        if answer[0] == b"REUSED":
            raise _reused()
        return [name.decode() for name in answer[1:]]

    async def rows(self, days: list[str]) -> list[Row]:
        """See ports.Store."""
        with store_errors():
            pipeline = self._redis.pipeline(transaction=False)
            for day in days:
                pipeline.hgetall(f"governor:rows:{day}")
            tables = await pipeline.execute()
        return [row for day, table in zip(days, tables, strict=True) for row in _rows_of(day, table)]

    async def budgets(self, config: Config) -> tuple[str, list[BudgetState]]:
        """See ports.Store."""
        scopes = sorted({(b.tenant, b.purpose) for b in config.budgets})
        args: list[Any] = [word for scope in scopes for word in scope]
        answer = await self._run("state", args)
        states = [
            BudgetState(
                who.decode(), period.decode(), purpose.decode(), int(limit), int(spent), int(held), int(end) / 1000
            )
            for who, period, purpose, limit, spent, held, end in answer[1:]
        ]
        return answer[0].decode(), states

    async def beat(self, watchers: list[str]) -> tuple[str, int]:
        """See ports.Store. The Governor's own clock is enough here: it only counts who was seen lately."""
        now = time.time()
        with store_errors():
            pipeline = self._redis.pipeline(transaction=False)
            if watchers:
                pipeline.zadd(_WATCHERS, dict.fromkeys(watchers, now))
            pipeline.zremrangebyscore(_WATCHERS, "-inf", now - WATCHER_TTL_S)
            pipeline.zcard(_WATCHERS)
            pipeline.get("governor:revision")
            answers = await pipeline.execute()
        return (answers[-1] or b"").decode(), int(answers[-2])

    async def _run(self, script: str, args: Sequence[Any]) -> Any:
        with store_errors():
            return await self._scripts[script](args=[self._shift_ms(), *args])


def _rows_of(day: str, table: dict[bytes, bytes]) -> list[Row]:
    sums: defaultdict[tuple[str, str, str], dict[str, Any]] = defaultdict(dict)
    for name, value in table.items():
        tenant, model, purpose, what = name.decode().split("|")
        if what in _WHATS:
            sums[(tenant, model, purpose)][what] = int(value)
    return [replace(Row(day, *key), **values) for key, values in sorted(sums.items())]


def _exhausted(wish: Wish, answer: Any) -> MeshError:
    who, period, limit, left = (part.decode() for part in answer[1:5])
    whose = "all tenants together" if who == EVERYONE else f"tenant {who}"
    message = (
        f"the {period.lower()} budget of {whose} has {left} of {limit} micro-USD left; this request may need "
        f"{wish.min_micros}"
    )
    metadata = {"tenant": who, "period": period, "limit_micros": limit, "remaining_micros": left}
    return MeshError("BUDGET_EXHAUSTED", message, metadata=metadata, retry_after_s=int(answer[5]) / 1000)


def _fingerprint(settlement: Settlement) -> str:
    return hash_of(orjson.dumps([settlement.items, settlement.updates]))


def hash_of(data: bytes) -> str:
    """A short name of some bytes, to tell a repeated request from another one."""
    return hashlib.sha256(data).hexdigest()[:32]


def _reused() -> MeshError:
    return MeshError("IDEMPOTENCY_KEY_REUSED", "this idempotency key was used for another request; take a new one")
