"""The online learner as callers see it: takes examples into its inbox, says where it stands, and steers it."""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

from hivemind.servers.common.errors import invalid_field, not_found
from hivemind.servers.trainer.learner_keys import LearnerStatus
from hivemind.servers.trainer.lesson import Entry, Lesson, Submission, lesson_of
from hivemind.servers.trainer.ports import Call

MOST_AT_ONCE: Final = 500
MOST_REASON: Final = 1000
Steering = Literal["pause", "resume", "drain"]
State = Literal["UNAVAILABLE", "WAITING", "LEARNING", "CHECKING", "PAUSED"]


@dataclass(frozen=True, slots=True)
class Limits:
    """Most lessons in the inbox, most of one tenant in it, how often checked answers must contradict a tenant before it
    is distrusted (0: it never is), and most lessons that are remembered to tell duplicates by."""

    inbox: int
    of_tenant: int
    patience: int = 0
    remembered: int = 100_000


@dataclass(frozen=True, slots=True)
class Seen:
    """What the store has of a learner: its own words, lessons in the inbox, whether it lives, and how it is steered."""

    status: LearnerStatus
    inbox: int
    live: bool
    paused: bool = False
    reason: str = ""
    note: str = ""
    distrusted: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Version:
    """An adapter that a learner published, and when (Unix seconds)."""

    adapter_id: str
    published: float


@dataclass(frozen=True, slots=True)
class Standing:
    """A learner as callers see it."""

    role: str
    state: State
    note: str
    waiting: int
    status: LearnerStatus
    distrusted: Sequence[str]


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of examples: how many were taken, known already, and refused by reason."""

    accepted: int = 0
    duplicates: int = 0
    refused: Mapping[str, int] = field(default_factory=dict)


class Learners(Protocol):
    """Where learners have their inboxes and their state. Every method may raise STORE_UNAVAILABLE or STORE_FULL."""

    async def submit(self, role: str, lessons: Sequence[Lesson], token: int, call: Call) -> Mapping[str, int]:
        """Stores lessons for good; how many were `taken`, were a `duplicate`, a `contradiction`, `distrusted` or
        over the `tenant_share`. OVERLOADED, STALE_FENCING_TOKEN or IDEMPOTENCY_KEY_REUSED: nothing was stored."""

    async def steer(self, role: str, what: Steering, reason: str, token: int, call: Call) -> None:
        """Has a learner pause, go on or drain. STALE_FENCING_TOKEN or IDEMPOTENCY_KEY_REUSED."""

    async def seen(self, role: str) -> Seen:
        """What is known of a learner."""

    async def hold(self, role: str, owner: str, lease_s: float) -> bool:
        """Takes or keeps the learner of a role for a Trainer; False: it is another's."""

    async def let_go(self, role: str, owner: str) -> None:
        """Lets another Trainer have it at once."""

    async def rest(self, role: str) -> None:
        """Says that a learner is at hand, though nothing is there for it to do and its process does not run."""

    async def gone(self, role: str) -> None:
        """Says that a learner has ended."""

    async def published(self, role: str, adapter_id: str, at: float) -> None:
        """Remembers a version and when it was published first (Unix seconds)."""

    async def versions(self, role: str) -> Sequence[Version]:
        """The versions that were published and not `forget`-ed, eldest first."""

    async def forget(self, role: str, adapter_id: str) -> None:
        """Forgets a version that takes part no longer."""

    async def note(self, role: str, note: str) -> None:
        """Says why there is no learner; empty: nothing to say."""


class LearnerDesk:
    """What SubmitExamples, GetLearner and the like do. `roles`: those that have a learner; `entry`: what it takes."""

    def __init__(self, learners: Learners, roles: Sequence[str], entry: Callable[[], Entry]) -> None:
        self._learners, self._roles, self._entry = learners, tuple(roles), entry

    async def submit(self, role: str, sent: Sequence[Submission], token: int, call: Call) -> Taken:
        """Takes examples. What is answered as accepted is on the disk of the store."""
        self._check_role(role)
        if len(sent) > MOST_AT_ONCE:
            raise invalid_field("examples", f"at most {MOST_AT_ONCE} in one call")
        entry = self._entry()
        reasons = [entry.refusal(s) for s in sent]
        fit = [s for s, reason in zip(sent, reasons, strict=True) if not reason]
        lessons = await asyncio.to_thread(lambda: [lesson_of(s) for s in fit])
        became = Counter(await self._learners.submit(role, lessons, token, call))
        accepted, duplicates = became.pop("taken", 0), became.pop("duplicate", 0)
        return Taken(accepted, duplicates, became + Counter(r for r in reasons if r))

    async def get(self, role: str) -> Standing:
        """Where a learner stands."""
        self._check_role(role)
        seen = await self._learners.seen(role)
        state, note = _state(seen)
        return Standing(role, state, note, seen.inbox + seen.status.unlearnt, seen.status, seen.distrusted)

    async def steer(self, role: str, what: Steering, call: Call, *, reason: str = "", token: int = 0) -> Standing:
        """Pauses it, lets it go on, or closes its open batch."""
        self._check_role(role)
        if len(reason) > MOST_REASON:
            raise invalid_field("reason", f"must have {MOST_REASON} characters at most")
        await self._learners.steer(role, what, reason, token, call)
        return await self.get(role)

    def _check_role(self, role: str) -> None:
        if role not in self._roles:
            raise not_found("online learner", role)


def _state(seen: Seen) -> tuple[State, str]:
    if seen.paused:
        return "PAUSED", seen.reason
    if not seen.live:
        return "UNAVAILABLE", seen.note or "no Trainer runs a learner at the moment; examples are taken and wait"
    states: Mapping[str, State] = {"LEARNING": "LEARNING", "CHECKING": "CHECKING", "UNAVAILABLE": "UNAVAILABLE"}
    return states.get(seen.status.state, "WAITING"), seen.status.note
