"""A draft that is to be refined, and a candidate that waits for it. Pure."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

import orjson

from hivemind.servers.common.redaction import redact_all
from hivemind.servers.common.turn import Turn

DEMONSTRATION: Final = "DEMONSTRATION"


@dataclass(frozen=True, slots=True)
class Draft:
    """An answer to refine. `redactions`: how many secrets and personal data were taken out of it so far."""

    messages: tuple[Turn, ...]
    draft: str
    tenant: str
    origin: str
    alternatives: tuple[str, ...] = ()
    request_id: str = ""
    domain: str = ""
    draft_model: str = ""
    draft_adapter: str = ""
    redactions: int = 0
    idempotency_key: str = ""
    fingerprint: str = ""

    def redacted(self) -> "Draft":
        """The same without secrets and personal data."""
        texts = (*(t.content for t in self.messages), *(t.name for t in self.messages), self.draft, *self.alternatives)
        clean, count = redact_all(texts)
        turns = len(self.messages)
        messages = tuple(
            replace(turn, content=content, name=name)
            for turn, content, name in zip(self.messages, clean[:turns], clean[turns : 2 * turns], strict=True)
        )
        return replace(
            self, messages=messages, draft=clean[2 * turns], alternatives=clean[2 * turns + 1 :],
            redactions=self.redactions + count,
        )  # fmt: skip

    def redacted_answer(self, answer: str) -> tuple[str, int]:
        """An answer to this (redacted) draft without what must not be stored, under the numbering of the draft."""
        texts = (*(t.content for t in self.messages), self.draft, answer)
        clean, count = redact_all(texts)
        return clean[-1], count


@dataclass(frozen=True, slots=True)
class Candidate:
    """A draft that was nominated. `value`: how much is expected to be learnt from it, in [0,1]."""

    draft: Draft
    value: float = 0.0
    cause: str = ""
    demonstration: str = ""

    @property
    def hash(self) -> str:
        """Names the conversation of the tenant: 32 hexadecimal digits."""
        return digest(self.draft.tenant, self.draft.messages)


def digest(*parts: object) -> str:
    """A short name of some values."""
    return hashlib.sha256(orjson.dumps(parts)).hexdigest()[:32]


class Submitted(Enum):
    """What became of a candidate."""

    ACCEPTED = "ACCEPTED"
    DUPLICATE = "DUPLICATE"
    DROPPED = "DROPPED"


@dataclass(frozen=True, slots=True)
class Lease:
    """A candidate that a worker has for a while. `attempt` counts from 1 and fences off whoever had it before."""

    id: str
    attempt: int
    candidate: Candidate


def packed(candidate: Candidate) -> bytes:
    """The candidate as JSON, for the queue."""
    return orjson.dumps(candidate)


def unpacked(data: bytes) -> Candidate:
    """The candidate of `packed`; ValueError, KeyError or TypeError if it is not one."""
    fields = orjson.loads(data)
    draft = fields["draft"]
    turns: Sequence[dict[str, str]] = draft["messages"]
    known = {**draft, "messages": tuple(Turn(**t) for t in turns), "alternatives": tuple(draft["alternatives"])}
    return Candidate(Draft(**known), fields["value"], fields["cause"], fields["demonstration"])
