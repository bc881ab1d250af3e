"""What the Arbiter's core needs from outside."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from hivemind.servers.arbiter.candidate import Candidate, Lease, QueueSize, Submitted
from hivemind.servers.arbiter.example import Example, NewExample
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
        self, model: Model, messages: Sequence[Mapping[str, str]], *, schema: Schema, max_tokens: int
    ) -> ModelReply:
        """One answer in JSON by `schema`, within the model's time-outs, or ModelCallFailed."""


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

    async def size(self) -> QueueSize:
        """How many there are."""
