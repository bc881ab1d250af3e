"""Takes jobs that nobody looks after, and follows each to its end. One per Trainer process."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final, TypeVar

import structlog

from hivemind.servers.common.errors import MeshError
from hivemind.servers.common.looking import keep_looking
from hivemind.servers.common.tasks import end_tasks
from hivemind.servers.trainer import jobs
from hivemind.servers.trainer.jobs import Ended, Job, Patience
from hivemind.servers.trainer.log_events import Event, events_in
from hivemind.servers.trainer.metrics import TrainerMetrics
from hivemind.servers.trainer.order import Lane
from hivemind.servers.trainer.ports import Champion, Executor, Registry, Running, Runs, Store
from hivemind.servers.trainer.schedule import Claimant, next_claim

_log = structlog.get_logger()

T = TypeVar("T")

_LANES_KNOWN_S: Final = 60.0
_LONGEST_RETRY_S: Final = 10.0
_DRAIN_STORE_S: Final = 2.0
_CLAIMS_AT_ONCE: Final = 20
_UNEXPECTED: Final = "an unexpected error of the Trainer; its log has it"


class Lost(Exception):
    """The job is another Trainer's now."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How often is looked, in seconds: at jobs (`poll_s`), and again where there was no room (`room_s`). A place that
    was silent for `abandoned_s` is given up."""

    poll_s: float = 0.5
    room_s: float = 30.0
    abandoned_s: float = 600.0


@dataclass(frozen=True, slots=True)
class Workshop:
    """All that a job needs from outside."""

    store: Store
    executor: Executor
    runs: Runs
    registry: Registry
    metrics: TrainerMetrics


class Conductor:
    """`owner` names this process among all Trainers. `run` for ever; `drain` before the end."""

    def __init__(
        self, shop: Workshop, *, owner: str, pace: Pace, patience: Patience, clock: Callable[[], float] = time.time
    ) -> None:
        self._shop, self._owner, self._pace, self._patience, self._clock = shop, owner, pace, patience, clock
        self._following: dict[str, asyncio.Task[None]] = {}
        self._lanes: Sequence[Lane] = ()
        self._lanes_seen = -_LANES_KNOWN_S
        self._draining = False

    async def run(self) -> None:
        """Looks for jobs for ever, and outlives an absent store."""
        await keep_looking(self._look, every_s=self._pace.poll_s)

    def begin_drain(self) -> None:
        """Takes no more jobs."""
        self._draining = True

    async def drain(self) -> None:
        """Has every process write its checkpoint and end, and gives its job to whoever comes next."""
        self._draining = True
        ids = list(self._following)
        await end_tasks(*self._following.values())
        try:
            async with asyncio.timeout(_DRAIN_STORE_S):
                await asyncio.gather(*(self._shop.store.release(job_id, self._owner) for job_id in ids))
        except (MeshError, TimeoutError) as error:
            _log.warning("leases_not_released", reason=str(error), note="they run out by themselves")

    async def lanes(self) -> Sequence[Lane]:
        """What can run here; looked at once a minute."""
        if time.monotonic() - self._lanes_seen >= _LANES_KNOWN_S:
            self._lanes, self._lanes_seen = await self._shop.executor.lanes(), time.monotonic()
        return self._lanes

    async def _look(self) -> None:
        self._shop.metrics.show(await self._shop.store.counts())
        for _ in range(_CLAIMS_AT_ONCE):
            schedule = await self._shop.store.schedule()
            who = Claimant(self._owner, self._shop.executor.place, await self.lanes(), self._pace.abandoned_s)
            found = next_claim(schedule, who, now=self._clock(), patience=self._patience)
            if found is None or self._draining:
                return
            job = await self._shop.store.claim(*found, schedule)
            if job is not None and job.owner == self._owner:
                self._follow(job)

    def _follow(self, job: Job) -> None:
        _log.info("job_taken", job=job.id, state=job.state, attempts=job.attempts)
        follower = Follower(self._shop, self._owner, self._pace, self._patience, self._clock)
        task = self._following[job.id] = asyncio.create_task(follower.follow(job))
        task.add_done_callback(lambda done: self._left(job.id, done))

    def _left(self, job_id: str, task: asyncio.Task[None]) -> None:
        if self._following.get(job_id) is task:
            del self._following[job_id]


class Follower:
    """Looks after one job for as long as it is this Trainer's."""

    def __init__(
        self, shop: Workshop, owner: str, pace: Pace, patience: Patience, clock: Callable[[], float]
    ) -> None:  # fmt: skip
        self._shop, self._owner, self._pace, self._patience, self._clock = shop, owner, pace, patience, clock
        self._handle, self._sign, self._sign_seen = "", 0.0, time.monotonic()
        self._stopped, self._why_killed = False, ""
        self._last_step: Event | None = None

    async def follow(self, job: Job) -> None:
        """Until it has ended or waits again, or is another's."""
        self._handle = job.handle
        try:
            if not job.handle and not job.trained:
                job = await self._start(job)
            while job.handle:
                job = await self._step(job)
            while job.trained and not job.final:
                job = await self._register(job)
            _log.info("job_left", job=job.id, state=job.state, error=job.error, note=job.note)
        except Lost:
            await self._lost(job.id)
        except asyncio.CancelledError:
            if self._handle:
                await asyncio.shield(self._shop.executor.stop(self._handle))
            raise
        except Exception:
            _log.exception("follower_broke", job=job.id)
            with suppress(Lost):
                await self._apply(job, lambda j: jobs.failed(j, _UNEXPECTED, self._clock()))

    async def _start(self, job: Job) -> Job:
        if job.cancel_requested:
            return await self._apply(job, lambda j: jobs.cancelled(j, self._clock()))
        full = await self._shop.executor.room(job.lane)
        if full:
            wait_s = self._pace.room_s
            return await self._apply(job, lambda j: jobs.put_back(j, why=full, now=self._clock(), wait_s=wait_s))
        try:
            await self._shop.runs.write(job, await self._champion(job))
            handle = await self._spawn(job.id)
        except (MeshError, OSError) as error:
            why = error.message if isinstance(error, MeshError) else f"its process cannot be started: {error}"
            return await self._apply(job, lambda j: self._crashed(j, why))
        return await self._apply(job, lambda j: jobs.process_started(j, handle, self._clock()))

    async def _spawn(self, job_id: str) -> str:
        """Never leaves a process behind that nobody knows of."""
        spawning = asyncio.ensure_future(self._shop.executor.start(job_id))
        try:
            self._handle = await asyncio.shield(spawning)
        except asyncio.CancelledError:
            self._handle = await spawning
            raise
        return self._handle

    def _crashed(self, job: Job, why: str) -> Job:
        return jobs.crashed(job, why, now=self._clock(), patience=self._patience)

    async def _champion(self, job: Job) -> Champion | None:
        """Whom the result has to beat; without an answer of the registry it is the base model alone."""
        try:
            return await self._shop.registry.champion(job.order.role)
        except MeshError as error:
            _log.warning("champion_unknown", job=job.id, reason=error.message)
            return None

    async def _step(self, job: Job) -> Job:
        handle = self._handle = job.handle
        job = await self._current(job)
        how = await self._shop.executor.poll(job.id, handle)  # before the log, so that its last lines are there
        job = await self._read_log(job)
        if isinstance(how, Running):
            job = await self._apply(job, lambda j: jobs.ran(j, how.elapsed_s))
            await self._direct(job, how)
            await asyncio.sleep(self._pace.poll_s)
            return job
        result = await self._shop.runs.result(job.id)
        ended = await self._apply(job, lambda j: self._after(j, handle, how, result))
        self._handle = ""
        return ended

    def _after(self, job: Job, handle: str, how: Ended, result: jobs.Result) -> Job:
        if job.handle != handle:
            return job
        how = replace(how, why=self._why_killed)
        return jobs.process_ended(job, how, result, now=self._clock(), patience=self._patience)

    async def _read_log(self, job: Job) -> Job:
        while chunk := await self._shop.executor.logs(job.id, job.log_offset):
            events, consumed = events_in(chunk)
            if not consumed:
                break
            self._last_step = self._shop.metrics.heard(self._last_step, events)
            job = await self._progress(job, events, consumed)
        return job

    async def _progress(self, job: Job, events: Sequence[Event], consumed: int) -> Job:
        start = job.log_offset
        return await self._apply(job, lambda j: jobs.progressed(j, events, start, start + consumed))

    async def _direct(self, job: Job, how: Running) -> None:
        """Ends the process where it has to end."""
        if how.sign != self._sign:
            self._sign, self._sign_seen = how.sign, time.monotonic()
        elif time.monotonic() - self._sign_seen > self._patience.stall_s:
            self._why_killed = f"it gave no sign of life for {self._patience.stall_s:g} s"
            _log.error("job_stalled", job=job.id, seconds=self._patience.stall_s)
            await self._shop.executor.kill(job.handle)
        if (job.cancel_requested or job.overrun) and not self._stopped:
            self._stopped = True
            await self._shop.executor.stop(job.handle)

    async def _register(self, job: Job) -> Job:
        """Tries once, and says what it waits for."""
        job = await self._current(job)
        if job.cancel_requested:
            return await self._apply(job, lambda j: jobs.cancelled(j, self._clock()))
        try:
            adapter_id = await self._shop.registry.register(job, self._shop.runs.adapter_path(job.id))
        except MeshError as error:
            if error.reason != "PEER_UNAVAILABLE":
                why = f"the adapter registry refused it: {error.message}"
                return await self._apply(job, lambda j: jobs.failed(j, why, self._clock()))
            note = f"waits for the adapter registry: {error.message}"
            job = await self._apply(job, lambda j: jobs.noted(j, note))
            await asyncio.sleep(min(_LONGEST_RETRY_S, 4 * self._pace.poll_s))
            return job
        return await self._apply(job, lambda j: jobs.registered(j, adapter_id, self._clock()))

    async def _current(self, job: Job) -> Job:
        """The job as the store has it, its lease renewed."""
        if not await self._patiently(lambda: self._shop.store.renew(job.id, self._owner)):
            raise Lost
        return self._mine(await self._patiently(lambda: self._shop.store.load(job.id)))

    async def _apply(self, job: Job, change: Callable[[Job], Job]) -> Job:
        """Carries a change out on the job as it is by then; an absent store is waited for."""
        while True:
            new = change(job)
            if new == job:
                return job
            saved = await self._patiently(lambda: self._shop.store.save(job, new))  # noqa: B023
            if saved is not None:
                return saved
            job = self._mine(await self._patiently(lambda: self._shop.store.load(job.id)))  # noqa: B023

    def _mine(self, job: Job | None) -> Job:
        if job is None or job.owner != self._owner:
            raise Lost
        return job

    async def _patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        """Tries until the store answers: the process goes on meanwhile, and so must the one who looks after it."""
        while True:
            try:
                return await call()
            except MeshError as error:
                _log.warning("store_absent", reason=error.reason)
                await asyncio.sleep(max(0.1, self._pace.poll_s))

    async def _lost(self, job_id: str) -> None:
        """Ends a process that the new owner does not know: it runs another one somewhere else."""
        job = await self._patiently(lambda: self._shop.store.load(job_id))
        _log.warning("job_lost", job=job_id, owner=job.owner if job is not None else "")
        if self._handle and job is not None and job.handle and job.handle != self._handle:
            await self._shop.executor.kill(self._handle)
