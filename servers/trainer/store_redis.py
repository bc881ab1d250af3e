"""Jobs in Redis. Each change is one Lua script; save.lua says how the keys look."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import resources
from typing import Any, Final

import orjson
from redis.asyncio import Redis

from hivemind.servers.common.errors import MeshError
from hivemind.servers.common.redis_client import store_errors
from hivemind.servers.trainer.jobs import ACTIVE, Job
from hivemind.servers.trainer.ports import NO_CALL, Call
from hivemind.servers.trainer.schedule import Schedule, Standing

_KEEP: Final = -1
_BUSY_RETRY_S: Final = 30.0


class RedisStore:
    """Implements ports.Store. `lease_s`: how long a Trainer has a job without renewing; `max_queued`: longest queue."""

    def __init__(self, redis: Redis, *, lease_s: float, max_queued: int) -> None:
        self._redis, self._lease_ms, self._max_queued = redis, round(lease_s * 1000), max_queued
        folder = resources.files("hivemind.servers.trainer")
        names = ("save", "schedule", "renew")
        self._scripts = {n: redis.register_script((folder / f"{n}.lua").read_text()) for n in names}

    async def create(self, job: Job, call: Call) -> Job:
        """See ports.Store."""
        answer = await self._save(None, job, call=call, lease_ms=_KEEP)
        kind = answer[0]
        if kind == b"REPEATED":
            return await self._known(answer[1].decode())
        if kind == b"STALE":
            newest = answer[1].decode()
            message = f"the fencing token {job.order.fencing_token} is older than {newest}, the newest leader's"
            raise MeshError("STALE_FENCING_TOKEN", message, metadata={"newest": newest})
        if kind == b"FULL":
            message = f"{int(answer[1])} jobs wait already; retry when some have ended"
            raise MeshError("OVERLOADED", message, retry_after_s=_BUSY_RETRY_S)
        return job

    async def repeated(self, call: Call) -> Job | None:
        """See ports.Store."""
        if not call.key:
            return None
        with store_errors():
            raw: Any = await self._redis.get(f"trainer:repeat:{call.key}")
        if raw is None:
            return None
        fingerprint, job_id = orjson.loads(raw)
        if fingerprint != call.fingerprint:
            raise _reused()
        return await self._known(job_id)

    async def load(self, job_id: str) -> Job | None:
        """See ports.Store."""
        with store_errors():
            raw: Any = await self._redis.hget(f"trainer:job:{job_id}", "json")
        return None if raw is None else _job(raw)

    async def save(self, old: Job, new: Job, *, call: Call = NO_CALL) -> Job | None:
        """See ports.Store."""
        return await self._change(old, new, call=call, lease_ms=_KEEP if new.state in ACTIVE else 0)

    async def claim(self, old: Job, new: Job, schedule: Schedule) -> Job | None:
        """See ports.Store."""
        lease_ms = self._lease_ms if new.state in ACTIVE else 0
        return await self._change(old, new, lease_ms=lease_ms, schedule=str(schedule.revision))

    async def page(self, before: int | None, limit: int) -> tuple[list[Job], int | None]:
        """See ports.Store."""
        top = "+inf" if before is None else f"({before}"
        with store_errors():
            found: Any = await self._redis.zrevrangebyscore(
                "trainer:jobs", top, "-inf", start=0, num=limit, withscores=True
            )
            pipeline = self._redis.pipeline(transaction=False)
            for job_id, _ in found:
                pipeline.hget(f"trainer:job:{job_id.decode()}", "json")
            raws = await pipeline.execute()
        return [_job(raw) for raw in raws], int(found[-1][1]) if len(found) == limit else None

    async def schedule(self) -> Schedule:
        """See ports.Store."""
        with store_errors():
            answer: Any = await self._scripts["schedule"]()
        pairs = zip(answer[1::2], answer[2::2], strict=True)
        return Schedule(int(answer[0]), [Standing(_job(raw), int(left) / 1000) for raw, left in pairs])

    async def renew(self, job_id: str, owner: str) -> bool:
        """See ports.Store."""
        return await self._renew(job_id, owner, self._lease_ms)

    async def release(self, job_id: str, owner: str) -> None:
        """See ports.Store."""
        await self._renew(job_id, owner, 0)

    async def counts(self) -> Mapping[str, int]:
        """See ports.Store."""
        with store_errors():
            found: Any = await self._redis.hgetall("trainer:counts")
        return {state.decode(): int(count) for state, count in found.items()}

    async def _renew(self, job_id: str, owner: str, lease_ms: int) -> bool:
        with store_errors():
            return bool(await self._scripts["renew"](args=[job_id, owner, lease_ms]))

    async def _change(
        self, old: Job, new: Job, *, lease_ms: int, call: Call = NO_CALL, schedule: str = ""
    ) -> Job | None:  # fmt: skip
        new = replace(new, revision=old.revision + 1)
        answer = await self._save(old, new, call=call, lease_ms=lease_ms, schedule=schedule)
        if answer[0] == b"REPEATED":
            return await self._known(answer[1].decode())
        return new if answer[0] == b"OK" else None

    async def _save(self, old: Job | None, new: Job, *, call: Call, lease_ms: int, schedule: str = "") -> Sequence[Any]:
        moved = old is None or _standing(old) != _standing(new)
        args: list[Any] = [
            new.id, "" if old is None else str(old.revision), orjson.dumps(new), new.state, schedule, int(moved),
            lease_ms, call.key, call.fingerprint, new.order.fencing_token, self._max_queued,
        ]  # fmt: skip
        with store_errors():
            answer: Sequence[Any] = await self._scripts["save"](args=args)
        if answer[0] == b"REUSED":
            raise _reused()
        return answer

    async def _known(self, job_id: str) -> Job:
        job = await self.load(job_id)
        if job is None:
            raise MeshError("STORE_UNAVAILABLE", "the store lost a job that it knew; retry", retry_after_s=1.0)
        return job


def _standing(job: Job) -> tuple[str, ...]:
    """What the choice of the next job depends on."""
    return job.state, job.lane, job.owner, job.place


def _job(raw: bytes) -> Job:
    return Job.from_json(orjson.loads(raw))


def _reused() -> MeshError:
    return MeshError("IDEMPOTENCY_KEY_REUSED", "this idempotency key was used for another request; take a new one")
