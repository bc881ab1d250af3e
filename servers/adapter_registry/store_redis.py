"""The registry's store in Redis. Each change is one Lua script; the scripts say how the keys look."""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import resources
from typing import Any, Final, cast

import orjson
from redis.asyncio import Redis

from hivemind.servers.adapter_registry.adapters import AdapterRecord
from hivemind.servers.adapter_registry.evidence import Arm, Evidence, Outcome, Pairs, Point, bucket_of
from hivemind.servers.adapter_registry.ports import Answer, Call
from hivemind.servers.adapter_registry.roles import Change, Event, Mark, Role, role_from_json
from hivemind.servers.common.errors import MeshError
from hivemind.servers.common.redis_client import store_errors

WINDOW_S: Final = 1800
"""An outcome is known again for one to two such windows."""
_KEEP_S: Final = 90 * 86400
_HOUR_S: Final = 3600
_HOURS: Final = 24
_MARK_BYTES: Final = 12


class RedisStore:
    """Implements ports.Store."""

    def __init__(self, redis: Redis, *, clock: Callable[[], float] = time.time) -> None:
        self._redis, self._clock = redis, clock
        folder = resources.files("hivemind.servers.adapter_registry")
        self._commit = redis.register_script((folder / "commit.lua").read_text())
        self._record = redis.register_script((folder / "record.lua").read_text())

    async def revision(self) -> int:
        """See ports.Store."""
        with store_errors():
            return int(await self._redis.get("adapters:revision") or 0)

    async def touch(self) -> int:
        """See ports.Store."""
        with store_errors():
            return int(await self._redis.incr("adapters:revision"))

    async def load(self) -> tuple[int, dict[str, Role]]:
        """See ports.Store. One transaction, so that revision and roles belong together."""
        revision, roles = await self._many(("GET", "adapters:revision"), ("HGETALL", "adapters:roles"), together=True)
        return int(revision or 0), {name.decode(): role_from_json(orjson.loads(raw)) for name, raw in roles.items()}

    async def commit(
        self, old: Role, change: Change, call: Call, adapter: AdapterRecord | None = None
    ) -> Answer | None:
        """See ports.Store."""
        new, event = change.role, change.event
        answer = Answer(new, event.adapter_id)
        args: list[Any] = [
            new.name, old.revision, orjson.dumps(new), new.champion, new.reign, new.split, orjson.dumps(event),
            call.idempotency_key, call.fingerprint, orjson.dumps(answer), call.fencing_token,
            *((adapter.id, _adapter_json(adapter), adapter.digest) if adapter is not None else ("", "", "")),
        ]  # fmt: skip
        args += [word for pair in change.marks.items() for word in pair]
        with store_errors():
            kind, *rest = await self._commit(args=args)
        if kind == b"OK":
            return answer
        if kind == b"KNOWN":
            return Answer(old, rest[0].decode())
        return _refused_or(kind, rest, lambda: _answer_of(rest[0]))

    async def repeated(self, call: Call) -> Answer | None:
        """See ports.Store."""
        if not call.idempotency_key and not call.fencing_token:
            return None
        key = f"adapters:repeat:{call.idempotency_key}"
        (fingerprint, answer), newest = await self._many(
            ("HMGET", key, "fingerprint", "answer"), ("GET", "adapters:fence")
        )
        if fingerprint is not None and call.idempotency_key:
            if fingerprint.decode() != call.fingerprint or answer is None:
                raise _reused()
            return _answer_of(answer)
        if 0 < call.fencing_token < int(newest or 0):
            raise _fenced(newest.decode())
        return None

    async def next_version(self, role: str, above: int) -> int:
        """See ports.Store. Numbers that were not used in the end stay unused."""
        key = f"adapters:version:{role}"
        with store_errors():
            number = int(await self._redis.incr(key))
            while number <= above:
                number = int(await self._redis.incrby(key, above + 1 - number))
        return number

    async def by_digest(self, role: str, digest: str) -> str:
        """See ports.Store."""
        with store_errors():
            found = await cast(Any, self._redis.hget("adapters:digests", f"{role}|{digest}"))
        return found.decode() if found else ""

    async def adapters(self, ids: Sequence[str]) -> dict[str, tuple[AdapterRecord, Mark]]:
        """See ports.Store."""
        if not ids:
            return {}
        records, marks = await self._many(("HMGET", "adapters:all", *ids), ("HMGET", "adapters:marks", *ids))
        found = zip(ids, records, marks, strict=True)
        return {i: (_record_of(raw), cast(Mark, (mark or b"").decode())) for i, raw, mark in found if raw is not None}

    async def newest(self, role: str, before: int, count: int) -> list[AdapterRecord]:
        """See ports.Store."""
        found = await self.adapters(await self.newest_ids(role, before, count))
        return [record for record, _ in found.values()]

    async def newest_ids(self, role: str, before: int, count: int) -> list[str]:
        """See ports.Store."""
        key = f"adapters:order:{role}" if role else "adapters:order"
        with store_errors():
            ids = await cast(
                Any, self._redis.zrevrangebyscore(key, f"({before}" if before else "+inf", "-inf", start=0, num=count)
            )
        return [i.decode() for i in ids]

    async def events(self, role: str, before: int, count: int) -> list[Event]:
        """See ports.Store."""
        key = f"adapters:events:{role}" if role else "adapters:events"
        with store_errors():
            rows: Any = await self._redis.xrevrange(key, max=f"({before}" if before else "+", count=count)
        return [
            replace(Event(**orjson.loads(fields[b"event"])), sequence=int(name.partition(b"-")[0]))
            for name, fields in rows
        ]

    async def record(self, outcomes: Sequence[Outcome], call: Call) -> tuple[int, int]:
        """See ports.Store."""
        now = self._clock()
        args: list[Any] = [
            call.idempotency_key, call.fingerprint, int(now // _HOUR_S), int(now // WINDOW_S), WINDOW_S, _KEEP_S,
            f"{now:.3f}",
        ]  # fmt: skip
        for o in outcomes:
            judged = o.score is not None
            args += (
                o.role, o.adapter_id, _mark("served", o.request_id, o.adapter_id) if o.served else "",
                int(o.failed), o.cost_micros, "" if o.latency_s is None else bucket_of(o.latency_s),
                _mark("judged", o.request_id, o.adapter_id, o.compared_with) if judged else "",
                o.compared_with, f"{o.score:g}" if o.score is not None else "", _mark("unit", o.unit) if o.unit else "",
                _mark("rated", o.request_id, o.adapter_id) if o.rating is not None else "",
                "" if o.rating is None else o.rating,
            )  # fmt: skip
        with store_errors():
            kind, *rest = await self._record(args=args)
        if kind == b"REUSED":
            raise _reused()
        return int(rest[0]), int(rest[1])

    async def evidence(self, role: Role, adapter_ids: Sequence[str]) -> dict[str, Evidence]:
        """See ports.Store."""
        at = f"{role.name}:{role.reign}"
        split, champion, *rest = await self._many(
            ("HGETALL", f"adapters:split:{role.name}:{role.split}"),
            ("HGETALL", f"adapters:arm:{at}:{role.champion}"),
            *(("HGETALL", f"adapters:{kind}:{at}:{i}") for i in adapter_ids for kind in ("arm", "pairs")),
        )
        units = {name.decode(): int(n) for name, n in split.items()}
        return {
            i: Evidence(_arm_of(rest[2 * k]), _arm_of(champion), _pairs_of(rest[2 * k + 1]), units)
            for k, i in enumerate(adapter_ids)
        }

    async def former(self, role: Role) -> Evidence:
        """See ports.Store."""
        before = role.line[-1] if role.line else ""
        own, former, pairs = await self._many(
            ("HGETALL", f"adapters:arm:{role.name}:{role.reign}:{role.champion}"),
            ("HGETALL", f"adapters:arm:{role.name}:{role.reign - 1}:{before}"),
            ("HGETALL", f"adapters:pairs:{role.name}:{role.reign - 1}:{role.champion}"),
        )
        return Evidence(_arm_of(own), _arm_of(former), _pairs_of(pairs))

    async def points(self, role: str, reign: int, adapter_id: str) -> list[Point]:
        """See ports.Store."""
        with store_errors():
            rows = await cast(Any, self._redis.lrange(f"adapters:points:{role}:{reign}:{adapter_id}", 0, -1))
        split = [row.split() for row in rows]
        return [Point(float(when), Pairs(int(wins), int(losses), int(ties))) for when, wins, losses, ties in split]

    async def hours(self, role: str) -> tuple[list[int], float]:
        """See ports.Store."""
        now = self._clock()
        keys = [f"adapters:hour:{role}:{int(now // _HOUR_S) - i}" for i in range(_HOURS)]
        with store_errors():
            found = await self._redis.mget(keys)
        return [int(n or 0) for n in found], now % _HOUR_S / 60

    async def _many(self, *commands: tuple[str, ...], together: bool = False) -> list[Any]:
        """Several reads in one round trip."""
        with store_errors():
            pipeline = self._redis.pipeline(transaction=together)
            for command in commands:
                pipeline.execute_command(*command)
            return await pipeline.execute()


def _refused_or(kind: bytes, rest: Sequence[bytes], repeated: Callable[[], Answer]) -> Answer | None:
    if kind == b"REUSED":
        raise _reused()
    if kind == b"FENCED":
        raise _fenced(rest[0].decode())
    return repeated() if kind == b"REPEATED" else None


def _adapter_json(adapter: AdapterRecord) -> bytes:
    """Without its order, which the script adds."""
    plain = orjson.loads(orjson.dumps(adapter))
    del plain["order"]
    return orjson.dumps(plain)


def _record_of(raw: bytes) -> AdapterRecord:
    return AdapterRecord(**orjson.loads(raw))


def _answer_of(raw: bytes) -> Answer:
    found = orjson.loads(raw)
    return Answer(role_from_json(found["role"]), found["adapter_id"])


def _arm_of(table: Mapping[bytes, bytes]) -> Arm:
    latencies = {int(k[1:]): int(v) for k, v in table.items() if k[:1] == b"l"}
    return Arm(int(table.get(b"n", 0)), int(table.get(b"errors", 0)), int(table.get(b"cost", 0)), latencies)


def _pairs_of(table: Mapping[bytes, bytes]) -> Pairs:
    return Pairs(int(table.get(b"wins", 0)), int(table.get(b"losses", 0)), int(table.get(b"ties", 0)))


def _mark(*parts: str) -> bytes:
    return hashlib.sha256("\0".join(parts).encode()).digest()[:_MARK_BYTES]


def _reused() -> MeshError:
    return MeshError("IDEMPOTENCY_KEY_REUSED", "this idempotency key was used for another request; take a new one")


def _fenced(newest: str) -> MeshError:
    message = "a newer leader has written since; this one no longer leads"
    return MeshError("STALE_FENCING_TOKEN", message, metadata={"newest_token": newest})
