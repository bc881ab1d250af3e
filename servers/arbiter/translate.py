"""Between the messages of arbiter.proto and the Arbiter's core."""

from typing import Final

from hivemind.servers.arbiter.example import ROLE, Example, Provenance
from hivemind.servers.arbiter.lines import Tombstone
from hivemind.servers.arbiter.shelf import Counts, Selection
from hivemind.servers.arbiter.stream import Beat
from hivemind.servers.common.context import is_id
from hivemind.servers.common.errors import MeshError, Violation, invalid_field, not_found
from hivemind.servers.common.translate import duration, timestamp
from hivemind.v1 import arbiter_pb2

IN_FLIGHT_DEFAULT, IN_FLIGHT_MAX = 32, 10_000
ACKNOWLEDGED_MAX: Final = 10_000
_REFINED_BY: Final = {
    "ORACLE": arbiter_pb2.PlatinumExample.ORACLE,
    "ARBITER": arbiter_pb2.PlatinumExample.ARBITER,
    "HUMAN": arbiter_pb2.PlatinumExample.HUMAN,
}


# Platinum: reading, the stream, forgetting.


def example_message(example: Example) -> arbiter_pb2.PlatinumExample:
    """An example as the contract has it."""
    message = arbiter_pb2.PlatinumExample()
    _fill(message, example)
    return message


def event_message(event: Example | Beat) -> arbiter_pb2.StreamPlatinumResponse:
    """A message of the stream."""
    if isinstance(event, Beat):
        beat = arbiter_pb2.Heartbeat(last_sequence=event.last_sequence, lag=event.lag)
        return arbiter_pb2.StreamPlatinumResponse(heartbeat=beat)
    message = arbiter_pb2.StreamPlatinumResponse()
    _fill(message.example, event)
    return message


def _fill(message: arbiter_pb2.PlatinumExample, example: Example) -> None:
    """In place: a message that is made first and handed on is copied, and the stream sends many."""
    new = example.new
    message.id = example.id
    message.sequence = example.sequence
    message.request_id = new.request_id
    message.role = ROLE
    for turn in new.messages:
        message.messages.add(role=turn.role, content=turn.content, name=turn.name)
    message.draft = new.draft
    message.final_platinum_answer = new.final_platinum_answer
    _fill_provenance(message.provenance, new.provenance)
    message.domain = new.domain
    message.confidence = new.confidence
    message.tenant = new.tenant
    message.licence = new.licence
    message.consent = new.consent
    message.create_time.CopyFrom(timestamp(example.created))
    message.refined_by = _REFINED_BY[new.refined_by]
    message.origin = new.origin
    message.sha256 = example.sha256


def watched_message(
    event: Example | Tombstone | Beat, wanted: arbiter_pb2.WatchPlatinumRequest, caller: str
) -> arbiter_pb2.WatchPlatinumResponse | None:
    """A message to one who reads along; None for an example that is too large, or of another tenant than the caller."""
    if isinstance(event, Tombstone):
        return arbiter_pb2.WatchPlatinumResponse(forgotten=arbiter_pb2.ForgottenPlatinum(ids=event.ids))
    if isinstance(event, Beat):
        return arbiter_pb2.WatchPlatinumResponse(heartbeat=arbiter_pb2.Heartbeat(last_sequence=event.last_sequence))
    message = example_message(event)
    if caller not in ("", event.new.tenant) or 0 < wanted.largest_bytes < message.ByteSize():
        return None
    return arbiter_pb2.WatchPlatinumResponse(example=message)


def wanted_by_watcher(request: arbiter_pb2.WatchPlatinumRequest) -> arbiter_pb2.WatchPlatinumRequest:
    """The request if its numbers are allowed."""
    for name in ("newest_per_tenant", "largest_bytes"):
        if getattr(request, name) < 0:
            raise invalid_field(name, "must not be negative")
    return request


def stats_message(counts: Counts, *, queued: int, dropped: int) -> arbiter_pb2.GetPlatinumStatsResponse:
    """The counts of ledger and queue."""
    return arbiter_pb2.GetPlatinumStatsResponse(
        examples=counts.examples,
        forgotten=counts.forgotten,
        last_sequence=counts.last_sequence,
        by_refined_by=counts.by_refined_by,
        by_domain=counts.by_domain,
        by_tenant=counts.by_tenant,
        cost_micros=counts.cost_micros,
        queued=queued,
        dropped=dropped,
        size_bytes=counts.size_bytes,
        bad_lines=counts.bad_lines,
    )


def page_below(token: str) -> int | None:
    """The sequence that a page goes on below; None for the first page."""
    if token and not (token.isascii() and token.isdecimal() and len(token) < 19):
        raise invalid_field("page_token", "is not one that ListPlatinum gave")
    return int(token) if token else None


def page_filter(request: arbiter_pb2.ListPlatinumRequest, caller: str) -> Selection:
    """What a page shows. A caller that names itself by header sees its own examples only."""
    return Selection(tenant=caller or request.tenant, domain=request.domain)


def visible(example: Example | None, name: str, caller: str) -> Example:
    """The example, unless there is none or it belongs to another tenant than the caller that names itself."""
    if example is None or caller not in ("", example.new.tenant):
        raise not_found("platinum example", name)
    return example


def to_forget(request: arbiter_pb2.ForgetPlatinumRequest) -> Selection | str:
    """What is to be forgotten; INVALID_FIELD unless exactly one thing is named."""
    named = [n for n in ("tenant", "request_id", "id") if getattr(request, n)]
    if len(named) != 1:
        description = "name exactly one of tenant, request_id and id"
        violations = tuple(Violation(n, description) for n in named or ("tenant", "request_id", "id"))
        raise MeshError("INVALID_FIELD", description, violations=violations)
    return request.id or Selection(tenant=request.tenant, request_id=request.request_id)


def group_of(name: str) -> str:
    """A consumer group's name."""
    return _id("group", name)


def consumer_of(name: str) -> str:
    """A consumer's name."""
    return _id("consumer", name)


def in_flight(asked: int) -> int:
    """How many examples may be under way."""
    if asked < 0:
        raise invalid_field("max_in_flight", "must not be negative")
    return min(asked or IN_FLIGHT_DEFAULT, IN_FLIGHT_MAX)


def acknowledged(request: arbiter_pb2.AckPlatinumRequest) -> list[int]:
    """The sequences that were handled."""
    if len(request.sequences) > ACKNOWLEDGED_MAX:
        raise invalid_field("sequences", f"must be at most {ACKNOWLEDGED_MAX}")
    if min(request.sequences) < 1:
        raise invalid_field("sequences", "must be at least 1 each")
    return list(request.sequences)


def _id(field: str, name: str) -> str:
    if not is_id(name):
        raise invalid_field(field, "must match [a-z0-9._-]+ and be at most 128 characters")
    return name


def _fill_provenance(message: arbiter_pb2.Provenance, p: Provenance) -> None:
    message.draft_model = p.draft_model
    message.draft_adapter = p.draft_adapter
    message.oracle_model = p.oracle_model
    message.arbiter_model = p.arbiter_model
    message.prompt_template_sha256 = p.prompt_template_sha256
    message.score = p.score
    message.draft_score = p.draft_score
    message.decisions.extend(p.decisions)
    message.changes = p.changes
    message.cost_micros = p.cost_micros
    message.latency.CopyFrom(duration(p.latency_s))
    message.safety = p.safety
    message.redactions = p.redactions
