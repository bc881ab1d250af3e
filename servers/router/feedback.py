"""Opinions on answers: checked, stored with the request, once each."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

import orjson

from hivemind.servers.common.catalogue import COURIER, MASTER
from hivemind.servers.common.errors import invalid_field
from hivemind.servers.common.redaction import redact
from hivemind.servers.router.records import Record

DEMONSTRATION_MAX: Final = 64_000
KINDS: Final = ("rating", "preferred", "demonstration")


@dataclass(frozen=True, slots=True)
class Feedback:
    """One opinion: `kind` is rating, preferred or demonstration. `created` in Unix seconds."""

    kind: str
    value: int | str
    created: float

    def checked(self) -> "Feedback":
        """The same if its value is allowed; MeshError otherwise."""
        if self.kind == "rating" and self.value not in (-1, 0, 1):
            raise invalid_field("rating", "must be 1 (good), 0 or -1 (bad)")
        if self.kind == "preferred" and self.value not in ("a", "b"):
            raise invalid_field("preferred", "must be a or b")
        if self.kind == "demonstration":
            text = str(self.value)
            if not text.strip() or "\x00" in text:
                raise invalid_field("demonstration", "must be a text without NUL")
            if len(text.encode()) > DEMONSTRATION_MAX:
                raise invalid_field("demonstration", f"must be at most {DEMONSTRATION_MAX} bytes")
        if self.kind not in KINDS:
            raise invalid_field("opinion", f"one of {', '.join(KINDS)} is required", reason="MISSING_FIELD")
        return self

    def redacted(self) -> "Feedback":
        """The same without secrets and personal data."""
        return self if self.kind != "demonstration" else replace(self, value=redact(str(self.value)).text)

    def key(self, idempotency_key: str) -> str:
        """What makes it one and the same opinion: the client's key, else its content."""
        return idempotency_key or hashlib.sha256(orjson.dumps([self.kind, self.value])).hexdigest()

    @property
    def verdict(self) -> bool | None:
        """Whether the answer was good; None if it says nothing of that."""
        return self.value == 1 if self.kind == "rating" and self.value else None


def judged_alias(record: Record) -> str:
    """The alias whose answer an opinion is about: the last one that answered."""
    answered = [c.alias for c in record.calls if not c.error]
    return answered[-1] if answered else record.chosen_model


def expected_quality(record: Record) -> float | None:
    """What was expected of a single call of that alias; None where nothing was (a named model).

    Of courier and master it is what the gate itself says: opinions correct its estimate, and to hold against them what
    they have moved already would count half of them twice (`bench/routing` shows both).
    """
    alias = judged_alias(record)
    own = dict(zip((COURIER, MASTER), record.estimate or (), strict=False))
    if alias in own:
        return own[alias]
    return next((c.quality for c in record.candidates if c.alias == alias and c.strategy == "single"), None)


class FeedbackStore(Protocol):
    """Where opinions go."""

    async def add(self, record: Record, feedback: Feedback, key: str) -> Feedback:
        """Stores an opinion and answers it; the one stored first where the key was used before. MeshError if full."""

    async def of(self, request_ids: Sequence[str]) -> list[list[Feedback]]:
        """The opinions on each of some requests, oldest first, in one round trip."""
