"""What the Arbiter's core needs from outside."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from hivemind.servers.arbiter.candidate import Candidate, Lease, Submitted
from hivemind.servers.arbiter.example import Example, NewExample
from hivemind.servers.arbiter.lines import Tombstone
from hivemind.servers.arbiter.verdict import Schema
from hivemind.servers.common.catalogue import Model


class PlatinumLedger(Protocol):
    """Where examples are kept for good."""

    async def append(self, new: NewExample) -> Example:
        """Stores an example and answers when it is on the disk.

        A second one with the same tenant and idempotency key within 24 hours is not stored: the first is answered, or
        MeshError IDEMPOTENCY_KEY_REUSED raised where the fingerprint differs. MeshError STORE_FULL or
        STORE_UNAVAILABLE where the disk refuses; nothing is stored then.
        """

    def repeated(self, tenant: str, idempotency_key: str, fingerprint: str) -> Example | None:
        """The example that was stored under this key within 24 hours; MeshError IDEMPOTENCY_KEY_REUSED as above."""


@dataclass(frozen=True, slots=True)
class ModelReply:
    """What a model said. `model`: what its API named; `whole`: it came to its end by itself.

    Tokens are None where the API told no usage.
    """

    text: str
    model: str
    whole: bool
    prompt_tokens: int | None
    completion_tokens: int | None


class ModelCallFailed(Exception):
    """A call brought no answer. The text is fit for a client.

    `may_have_cost`: it may be on the provider's bill; `passing`: the same call may succeed later.
    """

    def __init__(self, message: str, *, may_have_cost: bool, passing: bool = True) -> None:
        super().__init__(message)
        self.may_have_cost, self.passing = may_have_cost, passing


class ChatModels(Protocol):
    """The paid models behind Oracle and Arbiter."""

    async def ask(
        self,
        model: Model,
        messages: Sequence[Mapping[str, str]],
        *,
        schema: Schema,
        max_tokens: int,
        within_s: float,
    ) -> ModelReply:
        """One answer in JSON by `schema`, within `within_s` seconds and the model's time-outs, or ModelCallFailed."""


class CandidateQueue(Protocol):
    """Candidates that wait for refinement, the most valuable first. MeshError STORE_* where the store fails."""

    async def submit(self, candidates: Sequence[Candidate]) -> Sequence[Submitted]:
        """What became of each."""

    async def take(self) -> Lease | None:
        """The best one that may be worked on now, None if there is none. Its lease ends by itself."""

    async def renew(self, lease: Lease) -> None:
        """Has the lease begin anew."""

    async def give_back(self, lease: Lease, *, delay_s: float) -> None:
        """Puts it back; it is not taken again before `delay_s` seconds have passed."""

    async def done(self, lease: Lease) -> None:
        """Takes it out for good."""


class PlatinumReader(Protocol):
    """What the stream reads of the ledger. Every method may raise STORE_UNAVAILABLE."""

    @property
    def last_sequence(self) -> int:
        """The newest sequence; 0 in an empty ledger."""

    def examples_above(self, sequence: int) -> int:
        """How many examples lie above a sequence."""

    @property
    def forgettings(self) -> int:
        """Grows whenever an example is forgotten."""

    def is_learnable(self, sequence: int) -> bool:
        """Whether an example stands there that is not forgotten."""

    async def refresh(self) -> None:
        """Takes in what other processes stored up to now."""

    async def read(self, sequences: Sequence[int]) -> list[tuple[int, Example | None]]:
        """The first of these sequences, as many as fit into about a megabyte, at least one; None: nothing to learn."""

    async def newest(self, per_tenant: int) -> tuple[list[int], int]:
        """Sequences of examples, in order: so many of the newest of each tenant (0: all), up to the newest sequence,
        which comes with them. Whatever forgets one of them has a sequence above that."""

    async def following(self, after: int) -> tuple[list[Example | Tombstone], int]:
        """The first examples and tombstones above a sequence, in order; and up to which sequence these are all."""


@dataclass(frozen=True, slots=True)
class Member:
    """A consumer of a group, for the time of one stream: `token` names that stream, `at_most` is how many examples
    may be under way."""

    group: str
    consumer: str
    token: str
    at_most: int


@dataclass(frozen=True, slots=True)
class Taken:
    """Work for a consumer: sequences in order, and how far the group is.

    `fed`: the group was given all sequences up to this one; `open`: those of them that are not acknowledged yet.
    `resume`: where to go on among what the consumer held before; empty: done with it. `created`: the group is new.
    """

    sequences: tuple[int, ...]
    fed: int
    open: int
    resume: str
    created: bool


class ConsumerGroups(Protocol):
    """Which group has which sequences in hand. Every method may raise STORE_UNAVAILABLE or STORE_FULL."""

    async def take(self, member: Member, *, last: int, resume: str, joining: bool) -> Taken:
        """Work up to the sequence `last`: first what the consumer held before, then what dead or idle ones held, then
        new. ETAG_MISMATCH if another stream has taken over this consumer."""

    async def acknowledge(self, group: str, sequences: Sequence[int]) -> int:
        """Says that sequences were handled; answers up to where all of them are."""

    async def leave(self, member: Member) -> None:
        """Gives what the consumer holds to the others at once."""

    async def restart(self, group: str) -> None:
        """Lets a group begin again with the first example."""

    async def progress(self) -> dict[str, tuple[int, int]]:
        """`fed` and `open` of each group."""


class QueueCounter(Protocol):
    """Counts what waits for refinement."""

    async def counts(self) -> tuple[int, int]:
        """Candidates that wait, and those that were dropped because the queue was full."""
