"""Workers that refine the best candidates of the queue, as long as the Governor allows it."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Final

import structlog

from hivemind.servers.arbiter.candidate import Draft, Lease, digest
from hivemind.servers.arbiter.governance import Governance
from hivemind.servers.arbiter.ports import CandidateQueue
from hivemind.servers.arbiter.refinement import Refinery
from hivemind.servers.common.errors import MeshError
from hivemind.servers.common.tasks import end_tasks

_log = structlog.get_logger()

_FINAL: Final = frozenset({"CONSENT_MISSING", "IDEMPOTENCY_KEY_REUSED", "INVALID_FIELD"})
_BUDGET_WAIT_MAX_S: Final = 600.0
_ATTEMPTS_MAX: Final = 8
"""A candidate that failed so often while others did not is taken out."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast workers go: how many at once, refinements a minute over all of them (0: no limit), and in seconds how
    often an empty queue is looked at, a lease renewed, and how long is waited after a failure, at first and at most."""

    concurrency: int = 4
    per_minute: float = 60.0
    poll_s: float = 0.5
    renew_s: float = 20.0
    pause_s: float = 1.0
    pause_max_s: float = 60.0


class Workers:
    """Works off the queue. `rng` spreads what waits; `clock` is monotonic, in seconds."""

    def __init__(
        self,
        queue: CandidateQueue,
        refinery: Refinery,
        governance: Governance,
        pace: Pace,
        *,
        rng: random.Random,
        clock: Callable[[], float],
    ) -> None:
        self._queue, self._refinery, self._governance, self._pace = queue, refinery, governance, pace
        self._rng, self._clock = rng, clock
        self._failures, self._next_turn, self._resting = 0, 0.0, asyncio.Lock()

    async def run(self) -> None:
        """Works for ever."""
        workers = [asyncio.create_task(self._worker()) for _ in range(self._pace.concurrency)]
        try:
            await asyncio.gather(*workers)
        finally:
            await end_tasks(*workers)

    async def _worker(self) -> None:
        while True:
            await self._governance.until_active()
            try:
                busy = await self._one()
            except MeshError as error:  # the queue's store
                _log.warning("queue_lost", reason=error.reason)
                busy = False
            if not busy:
                await asyncio.sleep(self._pace.poll_s * self._rng.uniform(0.8, 1.2))

    async def _one(self) -> bool:
        """Refines one candidate; False if there is none."""
        async with self._resting:  # while models are down one worker tries, the others wait here
            await self._rest()
            await self._governance.until_active()
            lease = await self._queue.take()
            if lease is None:
                return False
            if self._pace.per_minute:
                self._next_turn = max(self._next_turn, self._clock()) + 60.0 / self._pace.per_minute
            if self._failures:
                await self._work(lease)
                return True
        await self._work(lease)
        return True

    async def _rest(self) -> None:
        """Waits for the next turn by the rate, and longer after failures."""
        pause = min(self._pace.pause_max_s, self._pace.pause_s * 2.0 ** (self._failures - 1)) if self._failures else 0.0
        await asyncio.sleep(max(pause, self._next_turn - self._clock()))

    async def _work(self, lease: Lease) -> None:
        refining = asyncio.create_task(self._refinery.refine(_draft_of(lease)))
        stopped = asyncio.create_task(self._governance.until_stopped())
        try:
            async with self._kept(lease):
                await asyncio.wait({refining, stopped}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:  # the server drains: another process may go on at once
            await end_tasks(refining)
            await self._settle(lease, refining)
            raise
        finally:
            await end_tasks(stopped)
        await end_tasks(refining)
        await self._settle(lease, refining)

    @asynccontextmanager
    async def _kept(self, lease: Lease) -> AsyncIterator[None]:
        """Renews the lease while the candidate is worked on."""

        async def renew() -> None:
            while True:
                await asyncio.sleep(self._pace.renew_s)
                with suppress(MeshError):  # the next one may come through
                    await self._queue.renew(lease)

        renewing = asyncio.create_task(renew())
        try:
            yield
        finally:
            await end_tasks(renewing)

    async def _settle(self, lease: Lease, refining: "asyncio.Task[object]") -> None:
        """What becomes of the candidate."""
        if refining.cancelled():  # the Governor has switched refinement off
            await self._queue.give_back(lease, delay_s=0.0)
            return
        error = refining.exception()
        if error is None:
            self._failures = 0
            await self._queue.done(lease)
        elif isinstance(error, MeshError):
            await self._refused(lease, error)
        else:
            _log.error("refinement_broke", id=lease.id, exc_info=error)
            await self._failed(lease)

    async def _refused(self, lease: Lease, error: MeshError) -> None:
        _log.info("refinement_refused", id=lease.id, reason=error.reason, cause=error.metadata.get("cause", ""))
        if error.reason in _FINAL or error.metadata.get("cause") == "NOT_ACCEPTED":
            self._failures = 0
            await self._queue.done(lease)
        elif error.reason == "REFINEMENT_DISABLED":
            await self._queue.give_back(lease, delay_s=0.0)
        elif error.reason == "BUDGET_EXHAUSTED":
            wait_s = min(_BUDGET_WAIT_MAX_S, error.retry_after_s or _BUDGET_WAIT_MAX_S)
            await self._queue.give_back(lease, delay_s=wait_s)
        else:
            await self._failed(lease)

    async def _failed(self, lease: Lease) -> None:
        if lease.attempt >= _ATTEMPTS_MAX and self._failures == 0:
            _log.warning("candidate_given_up", id=lease.id, attempts=lease.attempt)
            await self._queue.done(lease)
            return
        self._failures += 1
        await self._queue.give_back(lease, delay_s=self._pace.pause_s)


def _draft_of(lease: Lease) -> Draft:
    """The key names the candidate: after a crash behind the ledger's commit the example is found, not made again."""
    draft = lease.candidate.draft
    return replace(draft, idempotency_key=f"queue-{lease.id}", fingerprint=digest(draft.messages, draft.draft))
