"""Domain errors: what a core raises, and the one table that says how each reason looks from outside. No grpc here."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

DOMAIN: Final = "hivemind.v1"


@dataclass(frozen=True, slots=True)
class Outside:
    """How a reason looks to a client: the name of the gRPC status code, and the HTTP status."""

    code: str
    http: int


OUTSIDE: Final[Mapping[str, Outside]] = {
    "INVALID_FIELD": Outside("INVALID_ARGUMENT", 400),
    "MISSING_FIELD": Outside("INVALID_ARGUMENT", 400),
    "MALFORMED_REQUEST": Outside("INVALID_ARGUMENT", 400),
    "REQUEST_TOO_LARGE": Outside("RESOURCE_EXHAUSTED", 413),
    "CONTEXT_LENGTH_EXCEEDED": Outside("INVALID_ARGUMENT", 400),
    "UNKNOWN_MODEL": Outside("INVALID_ARGUMENT", 400),
    "UNKNOWN_STRATEGY": Outside("INVALID_ARGUMENT", 400),
    "UNKNOWN_POLICY": Outside("INVALID_ARGUMENT", 400),
    "HINTS_NOT_MET": Outside("INVALID_ARGUMENT", 400),
    "NOT_FOUND_RESOURCE": Outside("NOT_FOUND", 404),
    "UNKNOWN_METHOD": Outside("NOT_FOUND", 404),
    "NOT_BUILT": Outside("UNIMPLEMENTED", 501),
    "ETAG_MISMATCH": Outside("ABORTED", 409),
    "IDEMPOTENCY_KEY_REUSED": Outside("ALREADY_EXISTS", 409),
    "KEY_MISSING": Outside("UNAUTHENTICATED", 401),
    "KEY_INVALID": Outside("UNAUTHENTICATED", 401),
    "BUDGET_EXHAUSTED": Outside("RESOURCE_EXHAUSTED", 429),
    "BUDGET_UNAVAILABLE": Outside("UNAVAILABLE", 503),
    "RATE_LIMITED": Outside("RESOURCE_EXHAUSTED", 429),
    "OVERLOADED": Outside("RESOURCE_EXHAUSTED", 429),
    "UPSTREAM_FAILED": Outside("UNAVAILABLE", 502),
    "NO_MODEL_AVAILABLE": Outside("UNAVAILABLE", 502),
    "DEADLINE_PASSED": Outside("DEADLINE_EXCEEDED", 504),
    "STORE_UNAVAILABLE": Outside("UNAVAILABLE", 503),
    "STORE_FULL": Outside("RESOURCE_EXHAUSTED", 429),
    "RESERVATION_CLOSED": Outside("FAILED_PRECONDITION", 400),
    "REFINEMENT_DISABLED": Outside("FAILED_PRECONDITION", 400),
    "REFINEMENT_UNAVAILABLE": Outside("UNAVAILABLE", 503),
    "CONSENT_MISSING": Outside("FAILED_PRECONDITION", 400),
    "JOB_STATE": Outside("FAILED_PRECONDITION", 400),
    "NO_TRAINING_DATA": Outside("INVALID_ARGUMENT", 400),
    "CHAMPION_CHANGED": Outside("ABORTED", 409),
    "STALE_PREVIEW": Outside("ABORTED", 409),
    "EVIDENCE_MISSING": Outside("INVALID_ARGUMENT", 400),
    "ADAPTER_INVALID": Outside("INVALID_ARGUMENT", 400),
    "STALE_FENCING_TOKEN": Outside("FAILED_PRECONDITION", 400),
    "LOOP_PAUSED": Outside("FAILED_PRECONDITION", 400),
    "INTERNAL_ERROR": Outside("INTERNAL", 500),
    "DRAINING": Outside("UNAVAILABLE", 503),
    "PEER_UNAVAILABLE": Outside("UNAVAILABLE", 503),
}
"""Every reason that a server of today raises; the names are those of errors.proto."""


@dataclass(frozen=True, slots=True)
class Violation:
    """A field that is wrong: its path in the request (`messages[0].role`) and what it should be."""

    field: str
    description: str


@dataclass(eq=False)
class MeshError(Exception):
    """An error that a client is told of. `message` says what was wrong, where, and what to do; it never holds a secret.

    `retry_after_s` is in seconds; `metadata` goes into ErrorInfo.
    """

    reason: str
    message: str
    violations: tuple[Violation, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    retry_after_s: float | None = None

    def __post_init__(self) -> None:
        super().__init__(self.message)

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"

    @property
    def outside(self) -> Outside:
        """How it looks from outside."""
        return OUTSIDE[self.reason]


def invalid_field(path: str, description: str, *, reason: str = "INVALID_FIELD") -> MeshError:
    """The error for one field with a value that is not allowed."""
    return MeshError(reason, f"{path}: {description}", violations=(Violation(path, description),))


def not_found(kind: str, name: str) -> MeshError:
    """The error for a resource that is not there."""
    return MeshError("NOT_FOUND_RESOURCE", f"no {kind} has the id {name!r}", metadata={"kind": kind, "id": name})


def not_built(method: str) -> MeshError:
    """The error for an RPC of the contract that this version does not have yet."""
    return MeshError("NOT_BUILT", f"{method} belongs to the contract and is not built yet in this version of hivemind")
