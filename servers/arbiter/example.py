"""A platinum example as a value: an answer worth learning from, and how it came about. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from hivemind.servers.common.turn import Turn

ROLE: Final = "arbiter_refined"
"""The role of every example that can be learnt from."""
REFINERS: Final = ("ORACLE", "ARBITER", "HUMAN")
ORIGINS: Final = ("traffic", "feedback", "api")


@dataclass(frozen=True)  # no slots: orjson writes it in half the time
class Provenance:
    """How a final answer came about; see arbiter.proto. `latency_s` in seconds."""

    draft_model: str = ""
    draft_adapter: str = ""
    oracle_model: str = ""
    arbiter_model: str = ""
    prompt_template_sha256: str = ""
    score: float = 0.0
    draft_score: float = 0.0
    decisions: tuple[str, ...] = ()
    changes: str = ""
    cost_micros: int = 0
    latency_s: float = 0.0
    safety: str = ""
    redactions: int = 0


@dataclass(frozen=True, kw_only=True)  # no slots, as above
class NewExample:
    """An example before the ledger has given it a place. All its texts are redacted already.

    `idempotency_key` is empty where the client named none; `fingerprint` tells a repeated request from another one
    under the same key. The fields stand in the order of a line, which is written from them.
    """

    request_id: str = ""
    tenant: str
    domain: str
    refined_by: str
    confidence: float
    messages: Sequence[Turn]
    draft: str
    final_platinum_answer: str
    provenance: Provenance
    licence: str
    consent: str
    origin: str
    idempotency_key: str = ""
    fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class Example:
    """An example in the ledger: `sequence` from 1 without gaps, `created` in Unix seconds, `sha256` of its line."""

    id: str
    sequence: int
    created: float
    sha256: str
    new: NewExample = field(repr=False)
