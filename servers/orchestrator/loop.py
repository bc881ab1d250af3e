"""The loop of a replica: while it leads and nobody has paused it, a cycle every so often, or when one is asked for."""

import asyncio
import time
import uuid
from collections.abc import Callable, Mapping, Sequence

import structlog

from hivemind.servers.common.errors import MeshError
from hivemind.servers.common.tasks import end_tasks
from hivemind.servers.orchestrator.cycle import Cycle, CycleRun, Step
from hivemind.servers.orchestrator.lease import Lease
from hivemind.servers.orchestrator.metrics import OrchestratorMetrics
from hivemind.servers.orchestrator.ports import Store, Wish

_log = structlog.get_logger()


class Loop:
    """Leads. Times in seconds: `every_s` between cycles, `step_s` for a step (`longer_s`: for some by name), `poll_s`
    between two looks at the store.

    `now`: Unix seconds, for display only.
    """

    def __init__(
        self, lease: Lease, store: Store, steps: Sequence[Step], metrics: OrchestratorMetrics, *,
        every_s: float, step_s: float, poll_s: float, longer_s: Mapping[str, float] | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self._lease, self._store, self._steps, self._metrics = lease, store, steps, metrics
        self._every_s, self._step_s, self._poll_s, self._now = every_s, step_s, poll_s, now
        self._longer_s = longer_s or {}
        self._led, self._due = 0, 0.0

    async def run(self) -> None:
        """For ever; an absent store is waited for."""
        while True:
            try:
                await self._look()
            except MeshError as error:
                _log.warning("loop_wait", reason=error.reason)
            await asyncio.sleep(self._poll_s)

    async def _look(self) -> None:
        token = self._lease.held
        self._metrics.lead(bool(token))
        if not token or await self._store.paused() is not None:
            self._led = 0
            return
        if token != self._led:
            self._led, self._due = token, time.monotonic() + self._every_s
            await self._show(token, "")
        wish = await self._store.next_wish()
        if wish is not None or time.monotonic() >= self._due:
            self._due = time.monotonic() + self._every_s
            await self._cycle(token, wish)

    async def _cycle(self, token: int, wish: Wish | None) -> None:
        cycle = Cycle(
            wish.id if wish is not None else uuid.uuid4().hex, self._now(), self._lease.name, token, wish is not None
        )
        run = CycleRun(cycle, self._steps, limit_s=lambda name: self._longer_s.get(name, self._step_s))
        steps = wish.steps if wish is not None else ()
        task = asyncio.create_task(run.run(lambda: self._still(token), steps))
        try:
            await self._watch(task, run, token)
        finally:
            await end_tasks(task)
        await self._store.record(cycle, wish)
        await self._show(token, "")
        for step in cycle.steps:
            self._metrics.ended(step)
        _log.info("cycle", id=cycle.id, token=token, outcomes={s.name: s.outcome for s in cycle.steps})

    async def _watch(self, task: "asyncio.Task[None]", run: CycleRun, token: int) -> None:
        """Waits for the steps, and cancels them when this replica stops leading or the loop is paused."""
        shown = ""
        while not task.done():
            await asyncio.wait({task}, timeout=self._poll_s)
            self._still(token)
            if not task.done() and await self._paused():
                await end_tasks(task)
                run.interrupted("paused")
                return
            if not task.done() and run.step != shown:
                shown = run.step
                await self._show(token, shown)
        task.result()

    async def _paused(self) -> bool:
        """A store that does not answer says nothing of a pause; the lease ends by itself then."""
        try:
            return await self._store.paused() is not None
        except MeshError:
            return False

    async def _show(self, token: int, step: str) -> None:
        following = self._now() + max(0.0, self._due - time.monotonic())
        try:
            await self._store.show(token, step, following)
        except MeshError as error:
            if error.reason == "STALE_FENCING_TOKEN":
                raise
            _log.info("progress_not_shown", reason=error.reason)

    def _still(self, token: int) -> int:
        """The token, if it still is the one of this replica."""
        held = self._lease.token()
        if held != token:
            raise MeshError("STALE_FENCING_TOKEN", f"token {token} no longer leads; {held} does")
        return token
