"""What StartTraining, CancelJob and the like do, apart from gRPC."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from typing import Final

from hivemind.servers.common.context import new_request_id
from hivemind.servers.common.errors import MeshError, not_found
from hivemind.servers.trainer import jobs
from hivemind.servers.trainer.conductor import Conductor
from hivemind.servers.trainer.jobs import Job
from hivemind.servers.trainer.order import DataSelection, Order, check_order, completed
from hivemind.servers.trainer.ports import Call, Runs, Store

LONGEST_SILENCE_S: Final = 10.0
"""After so long a watcher is told the same again, so that it can tell a silent job from a dead connection."""


class Admissions:
    """The jobs as callers see them. `poll_s`: how often a watcher looks; `patience_s`: for how long an absent store is
    waited for in the middle of a watch."""

    def __init__(
        self, store: Store, runs: Runs, conductor: Conductor,
        *, poll_s: float = 0.5, patience_s: float = 30.0, clock: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self._store, self._runs, self._conductor = store, runs, conductor
        self._poll_s, self._patience_s, self._clock = poll_s, patience_s, clock

    async def start(self, order: Order, call: Call) -> Job:
        """Queues a job, once its order and its data were looked at."""
        known = await self._store.repeated(call)
        if known is not None:
            return known
        wanted = completed(order)
        check_order(wanted, [lane.name for lane in await self._conductor.lanes()])
        job = Job(id=new_request_id(), order=wanted, created=self._clock())
        kept = False
        try:
            job = await self._prepared(job) if order.data is not None else await self._prepared_by_default(job)
            queued = await self._store.create(job, call)
            kept = queued.id == job.id
            return queued
        except MeshError as error:
            kept = error.reason == "STORE_UNAVAILABLE"  # it may have been stored before the answer was lost
            raise
        finally:
            if not kept:
                await asyncio.shield(self._runs.discard(job.id))

    async def _prepared(self, job: Job) -> Job:
        await self._runs.write(job, None)
        await self._runs.check(job)
        return job

    async def _prepared_by_default(self, job: Job) -> Job:
        """Where no data was named and the public sets cannot be had, the ledger alone will do if it holds something."""
        try:
            return await self._prepared(job)
        except MeshError as error:
            if error.reason != "NO_TRAINING_DATA":
                raise
            hub = error
        alone = replace(job, order=replace(job.order, data=DataSelection(platinum=True)))
        try:
            return await self._prepared(alone)
        except MeshError as ledger:
            if ledger.reason != "NO_TRAINING_DATA":
                raise
            message = f"there is no data to be had: {hub.message}; {ledger.message}"
            raise MeshError("NO_TRAINING_DATA", message, violations=hub.violations + ledger.violations) from hub

    async def get(self, job_id: str) -> Job:
        """A job; NOT_FOUND_RESOURCE."""
        job = await self._store.load(job_id)
        if job is None:
            raise not_found("training job", job_id)
        return job

    async def cancel(self, job_id: str, call: Call) -> Job:
        """Asks a job to end; the answer is how it stands by then. JOB_STATE if it ended in another way before."""
        while True:
            job = await self.get(job_id)
            if job.final and job.state != "CANCELLED":
                raise MeshError("JOB_STATE", f"the job is {job.state} already", metadata={"state": job.state})
            new = jobs.cancel_asked(job, self._clock())
            saved = job if new == job and not call.key else await self._store.save(job, new, call=call)
            if saved is not None:
                return saved

    async def watch(self, job_id: str) -> AsyncGenerator[Job, None]:
        """The job at once, and again with every change or after a silence, to its end. Outlives a store that is away
        for a moment."""
        job = await self.get(job_id)
        yield job
        seen = told = time.monotonic()
        while not job.final:
            await asyncio.sleep(self._poll_s)
            try:
                now = await self.get(job_id)
                seen = time.monotonic()
            except MeshError as error:
                if error.reason != "STORE_UNAVAILABLE" or time.monotonic() - seen > self._patience_s:
                    raise
                continue
            if now.revision != job.revision or seen - told > LONGEST_SILENCE_S:
                job, told = now, seen
                yield job
