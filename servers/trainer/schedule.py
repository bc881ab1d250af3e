"""Which job is next. Pure.

Jobs are taken in the order in which they came, as far as their lane has room. A job whose Trainer is gone comes first:
its process may still run, and somebody has to look after it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hivemind.servers.trainer.jobs import Job, Patience, claimed, crashed, taken_over
from hivemind.servers.trainer.order import Lane, lane_of


@dataclass(frozen=True, slots=True)
class Standing:
    """A job that runs or waits. `lease_s`: seconds for which its owner has it still, negative since it lost it."""

    job: Job
    lease_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Schedule:
    """All that runs or waits, oldest first. `revision` changes with every claim and every end."""

    revision: int
    standings: Sequence[Standing]


@dataclass(frozen=True, slots=True)
class Claimant:
    """A Trainer that looks for work: its name, where its jobs would run, and how long (in seconds) a place may be
    silent before its jobs are given to others."""

    owner: str
    place: str
    lanes: Sequence[Lane]
    abandoned_s: float


def next_claim(schedule: Schedule, who: Claimant, *, now: float, patience: Patience) -> tuple[Job, Job] | None:
    """The job to take, as it is and as it would be; None if there is none for this Trainer."""
    running = (s for s in schedule.standings if s.job.state != "QUEUED" and s.job.owner != who.owner)
    for standing in (s for s in running if s.lease_s <= 0):
        job = standing.job
        if job.place == who.place:
            return job, taken_over(job, owner=who.owner)
        if standing.lease_s < -who.abandoned_s:
            machine = job.place.partition(":")[0]
            gone = f"the machine {machine} that ran it was not seen for {who.abandoned_s:g} s"
            return job, crashed(job, gone, now=now, patience=patience)
    return _from_the_queue(schedule, who, now)


def _from_the_queue(schedule: Schedule, who: Claimant, now: float) -> tuple[Job, Job] | None:
    busy = Counter(s.job.lane for s in schedule.standings if s.job.place == who.place and s.job.lane)
    free: Mapping[str, Lane] = {lane.name: lane for lane in who.lanes if busy[lane.name] < lane.capacity}
    names = [lane.name for lane in who.lanes]
    for job in (s.job for s in schedule.standings if s.job.state == "QUEUED" and s.job.not_before <= now):
        lane = free.get(lane_of(job.order, names))
        if lane is not None:
            return job, claimed(job, owner=who.owner, place=who.place, lane=lane)
    return None
