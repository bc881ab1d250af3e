"""What the Trainer's core needs from outside. Nothing here assumes that jobs run on the machine of the Trainer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from hivemind.servers.trainer.jobs import Ended, Job, Result
from hivemind.servers.trainer.order import Lane
from hivemind.servers.trainer.schedule import Schedule


@dataclass(frozen=True, slots=True)
class Call:
    """What a change came with: the idempotency key (may be empty) and what tells the request from another one."""

    key: str = ""
    fingerprint: str = ""


NO_CALL: Final = Call()
"""A change that no caller asked for."""


@dataclass(frozen=True, slots=True)
class Running:
    """A process that runs since `elapsed_s` seconds; `sign` changes with every sign of life that it gives."""

    elapsed_s: float
    sign: float


@dataclass(frozen=True, slots=True)
class Champion:
    """The adapter in office: its id, and its directory relative to the adapters' folder."""

    id: str
    path: str


class Store(Protocol):
    """Where jobs are kept. Every method may raise STORE_UNAVAILABLE or STORE_FULL."""

    async def create(self, job: Job, call: Call) -> Job:
        """Puts a new job into the queue. A repeated key answers the job of the first time; a key of another request is
        IDEMPOTENCY_KEY_REUSED, an old leader's order STALE_FENCING_TOKEN, a full queue OVERLOADED."""

    async def repeated(self, call: Call) -> Job | None:
        """What a call with this key was answered before, None for a new key; IDEMPOTENCY_KEY_REUSED."""

    async def load(self, job_id: str) -> Job | None:
        """A job, None if there is none with this id."""

    async def save(self, old: Job, new: Job, *, call: Call = NO_CALL) -> Job | None:
        """Puts `new` in the place of `old` in one step. None: another change came first."""

    async def claim(self, old: Job, new: Job, schedule: Schedule) -> Job | None:
        """Like save, with the lease for the new owner, and only if no job was claimed since the schedule was read."""

    async def page(self, before: int | None, limit: int) -> tuple[list[Job], int | None]:
        """Jobs, newest first, below a place; and the place where the next page begins, None at the end."""

    async def schedule(self) -> Schedule:
        """The jobs that wait and those that run."""

    async def renew(self, job_id: str, owner: str) -> bool:
        """Keeps a job for its owner a while longer; False if it is another's."""

    async def release(self, job_id: str, owner: str) -> None:
        """Lets others take a job over at once."""

    async def counts(self) -> Mapping[str, int]:
        """How many jobs are in each state."""


class Executor(Protocol):
    """Runs the processes of jobs: on this machine, or on a cluster."""

    @property
    def place(self) -> str:
        """Names where the processes run. A Trainer at the same place can take them over."""

    async def lanes(self) -> Sequence[Lane]:
        """What can run here at the same time."""

    async def room(self, lane: str) -> str:
        """Why a job cannot start in this lane now, in one sentence; empty: it can."""

    async def start(self, job_id: str) -> str:
        """Starts the process of a job, or finds the one that runs; answers the handle that names it for good."""

    async def poll(self, job_id: str, handle: str) -> Running | Ended:
        """How the process does."""

    async def stop(self, handle: str) -> None:
        """Asks the process to write a checkpoint and end; it is killed if it takes too long over that."""

    async def kill(self, handle: str) -> None:
        """Ends the process at once."""

    async def logs(self, job_id: str, offset: int) -> bytes:
        """The next part of the job's log.jsonl; empty at its end."""


class Runs(Protocol):
    """The run folders."""

    async def write(self, job: Job, champion: Champion | None) -> None:
        """Writes what the process of a job is to do. STORE_FULL where the disk is full."""

    async def check(self, job: Job) -> None:
        """Has the job's own program look at that; INVALID_FIELD or NO_TRAINING_DATA with its words."""

    async def discard(self, job_id: str) -> None:
        """Removes the folder of a job that never came to be."""

    async def result(self, job_id: str) -> Result:
        """What a run left behind."""

    def adapter_path(self, job_id: str) -> str:
        """Where its adapter lies, as RegisterAdapter wants it."""


class Registry(Protocol):
    """The AdapterRegistry. PEER_UNAVAILABLE where it does not answer; any other error is its refusal."""

    async def register(self, job: Job, path: str) -> str:
        """Registers the adapter of a job and lets it challenge, with one effect however often it is called; answers its
        id."""

    async def champion(self, role: str) -> Champion | None:
        """The champion of a role, None for the base model."""
