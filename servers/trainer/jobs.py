"""A training job: where it stands, and every step that it may take. Pure: time comes in. docs/adr/0009 has the picture.

QUEUED -> RUNNING -> EVALUATING -> SUCCEEDED | REJECTED
QUEUED <- RUNNING, EVALUATING   after a crash or an interruption; it goes on from its checkpoint
FAILED and CANCELLED            from anywhere but the end
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from hivemind.servers.trainer.log_events import Event
from hivemind.servers.trainer.order import DataSelection, Lane, Order

ACTIVE: Final = frozenset({"RUNNING", "EVALUATING"})
FINAL: Final = frozenset({"SUCCEEDED", "REJECTED", "FAILED", "CANCELLED"})
STATES: Final = ("QUEUED", "RUNNING", "EVALUATING", "SUCCEEDED", "REJECTED", "FAILED", "CANCELLED")
STEPS: Final[Mapping[str, frozenset[str]]] = {
    "QUEUED": frozenset({"QUEUED", "RUNNING", "FAILED", "CANCELLED"}),
    "RUNNING": frozenset({"QUEUED", "RUNNING", "EVALUATING", "REJECTED", "FAILED", "CANCELLED"}),
    "EVALUATING": frozenset({"QUEUED", "EVALUATING", *FINAL}),
}
"""Which state may follow which; a final one is followed by none."""

EXIT_INTERRUPTED: Final = 3
EXIT_REJECTED: Final = 4
EXIT_BAD_DATA: Final = 5
SIGKILL: Final = 9
TRAIN_SHARE: Final = 0.8
"""The share of a time budget that goes into training; the rest is for the evaluation."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is; `eta_s` in seconds."""

    step: int = 0
    max_steps: int = 0
    loss: float = 0.0
    tokens_per_second: float = 0.0
    eta_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Patience:
    """How a job that does not go well is dealt with: `max_crashes` until it is given up, `retry_s` seconds after the
    first crash, doubling; `stall_s` seconds without a sign of life count as a crash."""

    max_crashes: int = 3
    retry_s: float = 5.0
    stall_s: float = 600.0


@dataclass(frozen=True, slots=True)
class Ended:
    """How a process ended: its exit code, negative for a signal, None where nobody saw it; whether the kernel killed
    something for want of memory meanwhile; the last line that it wrote to its log; and why the Trainer killed it, where
    it did."""

    code: int | None
    out_of_memory: bool = False
    last_words: str = ""
    why: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """What a run left behind: the range of platinum sequences that it learnt from (0: none), and what is wrong with it;
    empty: nothing."""

    first_sequence: int = 0
    last_sequence: int = 0
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Job:
    """A job. Times in Unix seconds, 0 for not yet.

    `owner` is the Trainer that looks after it, `place` the machine and state folder where it runs, `handle` what its
    executor knows its process by. `used_s` are the seconds of the attempts before this one, `attempt_s` of this one.
    `trained`: its process ended well, and only the registration is left. `overrun`: why the Trainer itself ends it.
    `said`: the reason that the process gave last. `not_a_number`: the step whose loss was none.
    """

    id: str
    order: Order
    created: float
    state: str = "QUEUED"
    revision: int = 1
    started: float = 0.0
    ended: float = 0.0
    error: str = ""
    note: str = ""
    adapter_id: str = ""
    backend: str = ""
    progress: Progress = Progress()
    attempts: int = 0
    crashes: int = 0
    not_before: float = 0.0
    cancel_requested: bool = False
    overrun: str = ""
    lane: str = ""
    price_per_hour_micros: int = 0
    place: str = ""
    owner: str = ""
    handle: str = ""
    log_offset: int = 0
    said: str = ""
    not_a_number: int = 0
    used_s: float = 0.0
    attempt_s: float = 0.0
    trained: bool = False
    evaluation: Mapping[str, float] = field(default_factory=dict)
    result: Result = Result()

    @property
    def final(self) -> bool:
        """Whether nothing will change any more."""
        return self.state in FINAL

    @property
    def data(self) -> DataSelection:
        """Its data."""
        return self.order.data or DataSelection()

    @property
    def running_s(self) -> float:
        """Seconds that its processes have run in all."""
        return self.used_s + self.attempt_s

    @property
    def cost_micros(self) -> int:
        """What that has cost in micro-USD, at the price of its lane, rounded up."""
        return math.ceil(self.running_s * self.price_per_hour_micros / 3600)

    @property
    def limit_s(self) -> float:
        """Seconds that it may run by its budgets of time and money; 0: no limit."""
        limits = [self.order.max_duration_s] if self.order.max_duration_s else []
        if self.order.max_cost_micros and self.price_per_hour_micros:
            limits.append(self.order.max_cost_micros * 3600 / self.price_per_hour_micros)
        return min(limits, default=0.0)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Job":
        """The job of what orjson made of one."""
        nested = {
            "order": Order.from_json(data["order"]),
            "progress": Progress(**data["progress"]),
            "result": Result(**data["result"]),
        }
        return cls(**{**data, **nested})


def claimed(job: Job, *, owner: str, place: str, lane: Lane) -> Job:
    """A queued job in the hands of a Trainer, before its process runs."""
    job = _to(job, "RUNNING")
    return replace(
        job, owner=owner, place=place, lane=lane.name, price_per_hour_micros=lane.price_per_hour_micros, handle="",
        note="",
    )  # fmt: skip


def taken_over(job: Job, *, owner: str) -> Job:
    """A job whose Trainer is gone, in the hands of another one at the same place."""
    return replace(job, owner=owner)


def put_back(job: Job, *, why: str, now: float, wait_s: float) -> Job:
    """Waits for its turn again, without having been started."""
    return replace(_released(_to(job, "QUEUED")), note=why, not_before=now + wait_s)


def process_started(job: Job, handle: str, now: float) -> Job:
    """Its process runs."""
    _check_active(job)
    if job.handle == handle:
        return job
    return replace(job, handle=handle, started=job.started or now, attempts=job.attempts + 1, said="", note="")


def progressed(job: Job, events: Iterable[Event], start: int, end: int) -> Job:
    """What its log says between two places, in bytes; nothing where it has heard that already."""
    _check_active(job)
    if job.log_offset != start:
        return job
    for event in events:
        job = _heard(job, event)
    return replace(job, log_offset=end)


def _heard(job: Job, event: Event) -> Job:
    if event.kind == "started":
        job = replace(job, backend=event.backend or job.backend)
    elif event.kind == "step" and not math.isfinite(event.loss):
        job = replace(job, not_a_number=event.step or 1)
    elif event.kind == "step":
        progress = Progress(event.step, event.max_steps, event.loss, event.tokens_per_second, event.eta_s)
        job = replace(job, progress=progress)
    elif event.kind == "evaluating":
        job = _to(job, "EVALUATING")
    elif event.kind == "evaluated":
        job = replace(job, evaluation=event.figures)
    elif event.kind in ("failed", "rejected"):
        job = replace(job, said=event.reason)
    return job


def ran(job: Job, elapsed_s: float) -> Job:
    """The same job, whose process has run for so long, or with the reason why the Trainer has to end it: no finite
    loss, or no time or money left."""
    _check_active(job)
    job = replace(job, attempt_s=max(job.attempt_s, float(math.floor(elapsed_s))))
    if job.overrun:
        return job
    if job.not_a_number:
        why = f"the loss was no number (NaN or infinite) at step {job.not_a_number}; lower the learning rate"
        return replace(job, overrun=why)
    limit_s = job.limit_s
    if not limit_s or job.used_s + elapsed_s < limit_s:
        return job
    by_time = job.order.max_duration_s and limit_s == job.order.max_duration_s
    budget = "max_duration" if by_time else f"max_cost_micros at {job.price_per_hour_micros} micro-USD an hour"
    return replace(job, overrun=f"it ran longer than {budget} allows ({limit_s:.3g} s)")


def cancel_asked(job: Job, now: float) -> Job:
    """Somebody wants it to end. A job that waits ends at once, one that runs when its process has ended."""
    if job.final or job.cancel_requested:
        return job
    job = replace(job, cancel_requested=True)
    return job if job.state in ACTIVE else cancelled(job, now)


def process_ended(job: Job, how: Ended, result: Result, *, now: float, patience: Patience) -> Job:
    """What follows from the end of its process."""
    job = _released(job)
    if job.cancel_requested:
        return cancelled(job, now)
    if job.overrun:
        return _ended(job, "FAILED", job.overrun, now)
    if how.code == 0 and result.problem:
        return _ended(job, "FAILED", result.problem, now)
    if how.code == 0:
        return replace(_to(job, "EVALUATING"), trained=True, result=result)
    if how.code == EXIT_INTERRUPTED:
        return replace(_to(job, "QUEUED"), note="it was interrupted and goes on from its checkpoint", not_before=now)
    if how.code == EXIT_REJECTED:
        reason = job.said or "its evaluation did not pass the gates"
        return replace(_ended(job, "REJECTED", reason, now), result=result)
    if how.code is None or how.code < 0:
        return crashed(job, _death(how), now=now, patience=patience)
    return _ended(job, "FAILED", job.said or how.last_words or f"its process ended with exit code {how.code}", now)


def crashed(job: Job, why: str, *, now: float, patience: Patience) -> Job:
    """Goes on from its checkpoint a little later, or has failed where that happened too often."""
    job = replace(_released(job), crashes=job.crashes + 1, trained=False)
    if job.crashes >= patience.max_crashes:
        times = (
            "" if job.crashes == 1 else f" ({job.crashes} times; it was resumed from its checkpoint each time before)"
        )
        return _ended(job, "FAILED", why + times, now)
    wait_s = patience.retry_s * 2 ** (job.crashes - 1)
    return replace(_to(job, "QUEUED"), note=f"resumes from its checkpoint: {why}", not_before=now + wait_s)


def registered(job: Job, adapter_id: str, now: float) -> Job:
    """Its adapter is one of the registry's."""
    return replace(_ended(job, "SUCCEEDED", "", now), adapter_id=adapter_id)


def noted(job: Job, note: str) -> Job:
    """Says what it waits for."""
    return replace(job, note=note)


def cancelled(job: Job, now: float) -> Job:
    """It was to end, and no process of it runs."""
    return _ended(_released(job), "CANCELLED", "", now)


def failed(job: Job, why: str, now: float) -> Job:
    """It cannot be brought to a good end."""
    return _ended(_released(job), "FAILED", why, now)


def _death(how: Ended) -> str:
    if how.why:
        return how.why
    if how.code is None:
        words = f"; its last words: {how.last_words}" if how.last_words else ""
        return f"its process disappeared, as after a restart of the machine{words}"
    if how.out_of_memory:
        return "out of memory: the kernel killed its process; take a smaller batch_size or max_seq_length"
    if how.code == -SIGKILL:
        return "its process was killed (SIGKILL), as the kernel does when memory runs out or an operator by kill -9"
    return f"its process was ended by signal {-how.code}"


def _released(job: Job) -> Job:
    """No process any more: the lane is free for the next one."""
    return replace(job, used_s=job.running_s, attempt_s=0.0, lane="", handle="")


def _ended(job: Job, state: str, error: str, now: float) -> Job:
    return replace(_to(job, state), error=error, ended=now, note="", owner="", lane="", handle="")


def _check_active(job: Job) -> None:
    if job.state not in ACTIVE:
        raise ValueError(f"job {job.id}: nothing runs of a job that is {job.state}")


def _to(job: Job, state: str) -> Job:
    if state not in STEPS.get(job.state, frozenset()):
        raise ValueError(f"job {job.id}: {state} does not follow {job.state}")
    return replace(job, state=state, owner="" if state == "QUEUED" else job.owner)
