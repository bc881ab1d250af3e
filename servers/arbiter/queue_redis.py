"""The queue of candidates in Redis. Each change is one Lua script; queue_prelude.lua says how the keys look."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final

import structlog
from redis.asyncio import Redis

from hivemind.servers.arbiter.candidate import Candidate, Lease, Submitted, packed, unpacked
from hivemind.servers.common.redis_client import store_errors

_log = structlog.get_logger()
_KEYS: Final = "arbiter:queue:"


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the queue may hold: candidates in all and of a tenant, bytes of a candidate; how long in seconds a
    conversation is remembered, and a lease holds."""

    candidates: int = 10_000
    of_tenant: int = 2_500
    candidate_bytes: int = 256 * 1024
    seen_s: int = 6 * 3600
    lease_s: float = 60.0


class RedisQueue:
    """Implements ports.CandidateQueue and ports.QueueCounter.

    `on_drop` is told how many candidates were dropped; `shift_ms` moves the scripts' clock: 0 but in tests.
    """

    def __init__(
        self,
        redis: Redis,
        bounds: Bounds,
        *,
        on_drop: Callable[[int], None] = lambda _: None,
        shift_ms: Callable[[], int] = lambda: 0,
    ) -> None:
        self._redis, self._bounds, self._on_drop, self._shift_ms = redis, bounds, on_drop, shift_ms
        folder = resources.files("hivemind.servers.arbiter")
        prelude = (folder / "queue_prelude.lua").read_text()
        names = ("submit", "take", "renew", "give_back", "done")
        self._scripts = {n: redis.register_script(prelude + (folder / f"queue_{n}.lua").read_text()) for n in names}

    async def submit(self, candidates: Sequence[Candidate]) -> Sequence[Submitted]:
        """See ports.CandidateQueue. They must be redacted already."""
        bodies = [packed(c) for c in candidates]
        fitting = [i for i, body in enumerate(bodies) if len(body) <= self._bounds.candidate_bytes]
        pipeline = self._redis.pipeline(transaction=False)
        for i in fitting:
            await self._scripts["submit"](args=self._submission(candidates[i], bodies[i]), client=pipeline)
        with store_errors():
            answers = await pipeline.execute() if fitting else []
        found = [Submitted.DROPPED] * len(candidates)
        for i, answer in zip(fitting, answers, strict=True):
            found[i] = Submitted(answer[0].decode())
        self._on_drop(found.count(Submitted.DROPPED) + sum(int(a[1]) for a in answers if len(a) > 1))
        return found

    async def take(self) -> Lease | None:
        """See ports.CandidateQueue. What cannot be read is taken out and counted as dropped."""
        while answer := await self._run("take", round(self._bounds.lease_s * 1000)):
            name, attempt, body = answer[0].decode(), int(answer[1]), answer[2]
            try:
                return Lease(name, attempt, unpacked(body))
            except (KeyError, TypeError, ValueError):
                _log.warning("candidate_unreadable", id=name)
                self._on_drop(1)
                await self._run("done", name, attempt)
        return None

    async def renew(self, lease: Lease) -> None:
        """See ports.CandidateQueue."""
        await self._run("renew", lease.id, lease.attempt, round(self._bounds.lease_s * 1000))

    async def give_back(self, lease: Lease, *, delay_s: float) -> None:
        """See ports.CandidateQueue."""
        await self._run("give_back", lease.id, lease.attempt, round(delay_s * 1000))

    async def done(self, lease: Lease) -> None:
        """See ports.CandidateQueue."""
        await self._run("done", lease.id, lease.attempt)

    async def counts(self) -> tuple[int, int]:
        """See ports.QueueCounter."""
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.zcard(f"{_KEYS}all")
        pipeline.get(f"{_KEYS}dropped")
        with store_errors():
            waiting, dropped = await pipeline.execute()
        return waiting, int(dropped or 0)

    def _submission(self, candidate: Candidate, body: bytes) -> list[Any]:
        bounds, tenant = self._bounds, candidate.draft.tenant
        return [
            self._shift_ms(), bounds.candidates, bounds.of_tenant, bounds.seen_s, candidate.hash, tenant,
            repr(float(candidate.value)), body,
        ]  # fmt: skip

    async def _run(self, script: str, *args: Any) -> Any:
        with store_errors():
            return await self._scripts[script](args=[self._shift_ms(), *args])
