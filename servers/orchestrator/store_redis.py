"""The orchestrator's store in Redis: the lease, the loop's state and the shared map. prelude.lua says how the keys
look."""

from collections.abc import Sequence
from importlib import resources
from typing import Any, Final

import orjson
from redis.asyncio import Redis

from hivemind.servers.common.errors import MeshError, invalid_field
from hivemind.servers.common.redis_client import store_errors
from hivemind.servers.orchestrator.cognitive_map import CognitiveMap, ToldPart
from hivemind.servers.orchestrator.cycle import Cycle
from hivemind.servers.orchestrator.lease import Holding
from hivemind.servers.orchestrator.ports import Progress, Wish

WISHES_MAX: Final = 20
_CYCLES: Final = "orchestrator:cycles"
_WISHES: Final = "orchestrator:wishes"


class RedisStore:
    """Implements lease.LeaseStore and ports.Store. `kept`: how many cycles the history holds."""

    def __init__(self, redis: Redis, *, kept: int, half_life_s: float) -> None:
        self._redis, self._kept, self._half_life_s = redis, kept, half_life_s
        folder = resources.files("hivemind.servers.orchestrator")
        prelude = (folder / "prelude.lua").read_text()
        names = ("take", "release", "pause", "wish", "progress", "record", "share")
        self._scripts = {n: redis.register_script(prelude + (folder / f"{n}.lua").read_text()) for n in names}

    async def take(self, name: str, ttl_s: float) -> Holding:
        """See lease.LeaseStore."""
        mine, token, leader = await self._run("take", name, round(ttl_s * 1000))
        return Holding(leader.decode(), int(token), bool(mine))

    async def release(self, name: str) -> None:
        """See lease.LeaseStore."""
        await self._run("release", name)

    async def pause(self, *, paused: bool, reason: str, idempotency_key: str) -> None:
        """See ports.Store."""
        if await self._run("pause", int(paused), reason, idempotency_key) == b"REUSED":
            raise _reused()

    async def paused(self) -> str | None:
        """See ports.Store."""
        with store_errors():
            found: Any = await self._redis.hget("orchestrator:paused", "reason")
        return None if found is None else found.decode()

    async def wish(self, wish: Wish, *, idempotency_key: str) -> str:
        """See ports.Store. OVERLOADED where too many wait."""
        raw = orjson.dumps({"id": wish.id, "steps": wish.steps})
        answer = await self._run("wish", wish.id, raw, " ".join(wish.steps), idempotency_key, WISHES_MAX)
        if answer[0] == b"REUSED":
            raise _reused()
        if answer[0] == b"FULL":
            raise MeshError("OVERLOADED", f"{WISHES_MAX} cycles are asked for already", retry_after_s=10.0)
        return str(answer[1].decode())

    async def next_wish(self) -> Wish | None:
        """See ports.Store."""
        with store_errors():
            raw: Any = await self._redis.lindex(_WISHES, 0)
        if raw is None:
            return None
        data = orjson.loads(raw)
        return Wish(data["id"], tuple(data["steps"]), raw)

    async def ran(self, wish_id: str) -> Cycle | None:
        """See ports.Store."""
        with store_errors():
            raw: Any = await self._redis.get(f"orchestrator:ran:{wish_id}")
        return None if raw is None else Cycle.from_json(orjson.loads(raw))

    async def progress(self) -> Progress | None:
        """See ports.Store."""
        with store_errors():
            pipe = self._redis.pipeline(transaction=True)
            pipe.get("orchestrator:lease")
            pipe.hmget("orchestrator:progress", "token", "step", "next")
            held, (token, step, following) = await pipe.execute()
        if held is None:
            return None
        number, _, leader = held.decode().partition(" ")
        if token != number.encode():
            return Progress(leader, int(number), "", 0.0)
        return Progress(leader, int(number), step.decode(), float(following))

    async def show(self, token: int, step: str, next_cycle: float) -> None:
        """See ports.Store."""
        await self._guarded("progress", token, step, f"{next_cycle:.3f}")

    async def record(self, cycle: Cycle, wish: Wish | None) -> None:
        """See ports.Store."""
        raw, name = (wish.raw, wish.id) if wish is not None else (b"", "")
        await self._guarded("record", cycle.token, orjson.dumps(cycle.to_json()), self._kept, raw, name)

    async def cycles(self, count: int, before: str = "") -> tuple[Sequence[Cycle], str]:
        """See ports.Store."""
        with store_errors():
            rows: Any = await self._redis.xrevrange(_CYCLES, f"({_checked(before)}" if before else "+", count=count)
        found = [Cycle.from_json(orjson.loads(fields[b"c"])) for _, fields in rows]
        return found, rows[-1][0].decode() if len(rows) == count else ""

    async def shared_map(self) -> CognitiveMap | None:
        """See ports.Store."""
        with store_errors():
            raw: Any = await self._redis.get("orchestrator:map")
        return None if raw is None else CognitiveMap.from_json(orjson.loads(raw))

    async def told(self) -> ToldPart | None:
        """See ports.Store."""
        with store_errors():
            raw: Any = await self._redis.get("orchestrator:learnt")
        return None if raw is None else ToldPart.from_json(orjson.loads(raw), self._half_life_s)

    async def share(self, found: CognitiveMap, told: ToldPart, *, token: int) -> None:
        """See ports.Store."""
        await self._guarded("share", token, orjson.dumps(found.to_json()), orjson.dumps(told.to_json()))

    async def _run(self, script: str, *args: Any) -> Any:
        with store_errors():
            return await self._scripts[script](args=args)

    async def _guarded(self, script: str, token: int, *args: Any) -> None:
        answer = await self._run(script, token, *args)
        if answer[0] == b"FENCED":
            raise stale(token, int(answer[1]))


def stale(token: int, newest: int) -> MeshError:
    """The error for a write under an older token than the newest."""
    message = f"a newer leader (token {newest}) has been elected; token {token} no longer leads"
    return MeshError("STALE_FENCING_TOKEN", message, metadata={"newest_token": str(newest)})


def _reused() -> MeshError:
    return MeshError("IDEMPOTENCY_KEY_REUSED", "this idempotency key was used for another request; take a new one")


def _checked(token: str) -> str:
    milliseconds, _, sequence = token.partition("-")
    if not (milliseconds.isdecimal() and sequence.isdecimal() and token.isascii() and len(token) < 40):
        raise invalid_field("page_token", "is not one that ListCycles gave")
    return token
