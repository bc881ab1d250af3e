"""Between the messages of refinement and the core."""

import hashlib
from collections.abc import Iterable
from typing import Final

from hivemind.servers.arbiter.candidate import DEMONSTRATION, Candidate, Draft
from hivemind.servers.common.context import DEFAULT_TENANT, current_call, is_id
from hivemind.servers.common.errors import invalid_field
from hivemind.servers.common.turn import Turn
from hivemind.v1 import arbiter_pb2, common_pb2

CANDIDATES_MAX: Final = 200
_ROLES: Final = ("system", "developer", "user", "assistant")
_KEY_MAX: Final = 128
_Cause = arbiter_pb2.RefinementCandidate.Cause


def draft_of(request: arbiter_pb2.RefineRequest) -> Draft:
    """The draft of a Refine; MeshError that names the field where one is wrong."""
    if len(request.idempotency_key) > _KEY_MAX:
        raise invalid_field("idempotency_key", f"at most {_KEY_MAX} characters")
    return Draft(
        messages=_turns(request.messages, "messages"),
        draft=request.draft,
        tenant=_tenant(current_call.get().tenant or request.tenant, "tenant"),
        origin="traffic" if request.request_id else "api",
        alternatives=tuple(request.alternatives),
        request_id=request.request_id,
        domain=request.domain,
        draft_model=request.draft_model,
        draft_adapter=request.draft_adapter,
        idempotency_key=request.idempotency_key,
        fingerprint=_fingerprint(request) if request.idempotency_key else "",
    )


def candidates_of(request: arbiter_pb2.SubmitCandidatesRequest) -> list[Candidate]:
    """The candidates of a batch; MeshError that names the field where one is wrong."""
    if len(request.candidates) > CANDIDATES_MAX:
        raise invalid_field("candidates", f"at most {CANDIDATES_MAX}, and {len(request.candidates)} came")
    return [_candidate(c, f"candidates[{i}]") for i, c in enumerate(request.candidates)]


def _candidate(message: arbiter_pb2.RefinementCandidate, path: str) -> Candidate:
    cause = _Cause.Name(message.cause)
    if not 0 <= message.value <= 1:
        raise invalid_field(f"{path}.value", f"{message.value:g} is not in [0, 1]")
    demonstrated = cause == DEMONSTRATION
    if not (message.demonstration if demonstrated else message.draft).strip():
        name = "demonstration" if demonstrated else "draft"
        raise invalid_field(f"{path}.{name}", "is required", reason="MISSING_FIELD")
    draft = Draft(
        messages=_turns(message.messages, f"{path}.messages"),
        draft=message.draft,
        tenant=_tenant(message.tenant, f"{path}.tenant"),
        origin="feedback" if demonstrated else "traffic",
        alternatives=tuple(message.alternatives),
        request_id=message.request_id,
        domain=message.domain,
        draft_model=message.draft_model,
        draft_adapter=message.draft_adapter,
    )
    return Candidate(draft, message.value, cause, message.demonstration)


def _turns(messages: Iterable[common_pb2.ChatMessage], path: str) -> tuple[Turn, ...]:
    turns = tuple(Turn(m.role, m.content, m.name) for m in messages)
    for i, turn in enumerate(turns):
        if turn.role not in _ROLES:
            raise invalid_field(f"{path}[{i}].role", f"must be one of {', '.join(_ROLES)}")
    return turns


def _tenant(name: str, path: str) -> str:
    tenant = name or DEFAULT_TENANT
    if not is_id(tenant):
        raise invalid_field(path, "must match [a-z0-9._-]+, at most 128 characters")
    return tenant


def _fingerprint(request: arbiter_pb2.RefineRequest) -> str:
    return hashlib.sha256(request.SerializeToString(deterministic=True)).hexdigest()[:32]
