"""What the registry's core needs from outside."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from hivemind.servers.adapter_registry.adapters import AdapterRecord
from hivemind.servers.adapter_registry.evidence import Evidence, Outcome, Point
from hivemind.servers.adapter_registry.roles import Change, Event, Mark, Role


@dataclass(frozen=True, slots=True)
class ReplicaState:
    """A replica of a model server: its address without credentials, the adapters that it says it holds, whether it
    answers, and what it lacks or why it fails."""

    address: str
    adapters: tuple[str, ...]
    healthy: bool
    note: str = ""


class ReplicaView(Protocol):
    """What the replicas of the model servers hold, as last asked; never waits."""

    def replicas(self, role: str) -> Sequence[ReplicaState]:
        """The replicas that serve a role."""


@dataclass(frozen=True, slots=True)
class Call:
    """Who changes something: the call's id, its idempotency key ('' none) with what it asked, and the leader's token (0
    none)."""

    request_id: str = ""
    idempotency_key: str = ""
    fingerprint: str = ""
    fencing_token: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """How a change ended: the role as it is then, and the adapter that it was about. Kept for a repeated key."""

    role: Role
    adapter_id: str


class Store(Protocol):
    """Where roles, adapters, events and evidence are kept. Every method may raise STORE_UNAVAILABLE or STORE_FULL."""

    async def revision(self) -> int:
        """Grows with every change of any role, and with `touch`."""

    async def touch(self) -> int:
        """Makes the revision grow, for a change that is not kept here; the new one."""

    async def load(self) -> tuple[int, dict[str, Role]]:
        """The revision and all roles by name; the roles are at least as new as the revision."""

    async def commit(
        self, old: Role, change: Change, call: Call, adapter: AdapterRecord | None = None
    ) -> Answer | None:
        """Puts a change in force in one step, with its event, marks and adapter. None: the role has changed meanwhile.

        A repeated key answers as the first time; a key of another request is IDEMPOTENCY_KEY_REUSED; an old token
        STALE_FENCING_TOKEN. An adapter whose digest the role has already is not added: the answer names the known one.
        """

    async def repeated(self, call: Call) -> Answer | None:
        """What this call was answered before; None for a new key. Keys and tokens as in `commit`."""

    async def next_version(self, role: str, above: int) -> int:
        """A version number that nobody else gets, above this one."""

    async def by_digest(self, role: str, digest: str) -> str:
        """The adapter of a role with this digest; '' if there is none."""

    async def adapters(self, ids: Sequence[str]) -> dict[str, tuple[AdapterRecord, Mark]]:
        """Those of these adapters that are registered, and how each is marked."""

    async def newest(self, role: str, before: int, count: int) -> list[AdapterRecord]:
        """Adapters registered before a place in the order (0: all), newest first; of all roles with ''."""

    async def newest_ids(self, role: str, before: int, count: int) -> list[str]:
        """The same, by their ids alone."""

    async def events(self, role: str, before: int, count: int) -> list[Event]:
        """Events before a sequence (0: all), newest first; of all roles with ''."""

    async def record(self, outcomes: Sequence[Outcome], call: Call) -> tuple[int, int]:
        """Counts outcomes into the evidence of the reign; how many were new and how many known."""

    async def evidence(self, role: Role, adapter_ids: Sequence[str]) -> dict[str, Evidence]:
        """What was seen of these adapters in the reign of the champion."""

    async def former(self, role: Role) -> Evidence:
        """The champion's answers in its reign, against those of the champion before in the reign before."""

    async def points(self, role: str, reign: int, adapter_id: str) -> list[Point]:
        """How the pairs of a challenger in a reign grew."""

    async def hours(self, role: str) -> tuple[list[int], float]:
        """Requests of the role by hour, the running one first, and how many minutes that has run."""
