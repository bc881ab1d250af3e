"""Between the messages of adapter_registry.proto and the registry's core."""

import hashlib
from typing import Any

from google.protobuf import duration_pb2, timestamp_pb2

from hivemind.servers.adapter_registry.adapters import AdapterView
from hivemind.servers.adapter_registry.evidence import Evidence, Outcome, Point
from hivemind.servers.adapter_registry.feed import RoleView, Snapshot
from hivemind.servers.adapter_registry.ports import Call
from hivemind.servers.adapter_registry.promotion import Preview
from hivemind.servers.adapter_registry.registry import Promotion
from hivemind.servers.adapter_registry.roles import Challenge, Event
from hivemind.servers.adapter_registry.verdict import (
    Assessment,
    Rules,
    as_e_value,
    assess,
    better_than_champion,
    win_rate,
)
from hivemind.servers.common.context import current_call
from hivemind.servers.common.errors import invalid_field
from hivemind.v1 import adapter_registry_pb2 as pb
from hivemind.v1 import common_pb2

PAGE = 50
PAGE_MAX = 500


def call_of(request: Any) -> Call:
    """Who makes a change; INVALID_FIELD for a key or token that is none."""
    key, token = request.idempotency_key, getattr(request, "fencing_token", 0)
    if len(key) > 128:
        raise invalid_field("idempotency_key", "must have 128 characters at most")
    if token < 0:
        raise invalid_field("fencing_token", "must be 0 or more")
    return Call(current_call.get().request_id, key, _fingerprint(request), token)


def page_of(request: pb.ListAdaptersRequest | pb.ListEventsRequest) -> tuple[int, int]:
    """Before which place to begin (0: at the newest), and how many."""
    token = request.page_token
    if token and not (token.isascii() and token.isdecimal() and 0 < int(token[:19]) < 1 << 62 and len(token) < 19):
        raise invalid_field("page_token", "is not one that this list gave")
    if request.page_size < 0:
        raise invalid_field("page_size", "must be 0 or more")
    return int(token or 0), min(request.page_size or PAGE, PAGE_MAX)


def adapter_of(view: AdapterView) -> pb.Adapter:
    """An adapter as the contract has it."""
    r = view.record
    return pb.Adapter(
        id=r.id, role=r.role, state=pb.Adapter.State.Value(view.state), base_model=r.base_model,
        base_revision=r.base_revision, parent=r.parent, first_sequence=r.first_sequence, last_sequence=r.last_sequence,
        rank=r.rank, sha256=r.sha256, size_bytes=r.size_bytes, data_licence=r.data_licence, evaluation=r.evaluation,
        create_time=_timestamp(r.create_time), path=r.path,
    )  # fmt: skip


def event_of(event: Event) -> pb.AdapterEvent:
    """An event as the contract has it."""
    return pb.AdapterEvent(
        sequence=event.sequence, time=_timestamp(event.time),
        kind=pb.AdapterEvent.Kind.Value(event.kind), role=event.role,
        adapter_id=event.adapter_id, previous_champion=event.previous_champion, reason=event.reason,
        preview_hash=event.preview_hash, request_id=event.request_id,
    )  # fmt: skip


def state_of(snapshot: Snapshot, rules: Rules, role: str = "") -> pb.RegistryState:
    """All roles, or one."""
    views = [view for name, view in snapshot.roles.items() if role in ("", name)]
    version = common_pb2.SnapshotVersion(revision=snapshot.revision, update_time=_timestamp(snapshot.time))
    return pb.RegistryState(roles=[role_of(view, rules) for view in views], version=version)


def role_of(view: RoleView, rules: Rules) -> pb.RoleState:
    """The state of a role."""
    role = view.role
    message = pb.RoleState(
        role=role.name,
        champion=role.champion,
        etag=role.etag,
        previous_champion=role.line[-1] if role.line else "",
        adapters=view.adapters,
    )
    for challenge in role.challenges:
        evidence = view.evidence.get(challenge.adapter_id, Evidence())
        found = assess(evidence, role.shares, rules)
        message.challenges.add(
            adapter_id=challenge.adapter_id, traffic=challenge.traffic, shadow=challenge.shadow,
            evidence=evidence_of(evidence, found),
        )  # fmt: skip
    for replica in view.replicas:
        message.replicas.add(
            address=replica.address, adapters=replica.adapters, healthy=replica.healthy, note=replica.note
        )
    return message


def evidence_of(evidence: Evidence, found: Assessment) -> pb.Evidence:
    """The evidence with the numbers that were made of it."""
    own, champion, pairs = evidence.challenger, evidence.champion, evidence.pairs
    return pb.Evidence(
        pairs=pairs.judged, wins=pairs.wins, losses=pairs.losses, ties=pairs.ties, win_rate=found.win_rate,
        win_rate_lower=found.lower, win_rate_upper=found.upper, e_value=as_e_value(found.log_e_better),
        latency_p95=_duration(own.quantile_s(0.95)), error_rate=own.error_rate, requests=own.requests,
        cost_micros=own.cost_micros, error_e_value=as_e_value(found.log_e_errors),
        latency_e_value=as_e_value(found.log_e_latency), sample_ratio_e_value=as_e_value(found.log_e_split),
        champion_requests=champion.requests, champion_error_rate=champion.error_rate,
        champion_latency_p95=_duration(champion.quantile_s(0.95)), champion_cost_micros=champion.cost_micros,
    )  # fmt: skip


def preview_of(preview: Preview, rules: Rules) -> pb.PreviewPromotionResponse:
    """A preview as the contract has it."""
    found = preview.assessment
    return pb.PreviewPromotionResponse(
        role=preview.role, adapter_id=preview.adapter_id,
        verdict=pb.PreviewPromotionResponse.Verdict.Value(found.verdict), reason=found.reason,
        preview_hash=preview.hash, expected_champion=preview.champion, evidence=evidence_of(preview.evidence, found),
        requests_needed=found.needed, requests_per_day=preview.requests_per_day,
        latency_p95_change_s=preview.latency_p95_change_s,
        cost_per_1000_change_micros=preview.cost_per_1000_change_micros,
        points=[_point(p, rules) for p in preview.points],
    )  # fmt: skip


def promotion_of(request: pb.PromoteAdapterRequest) -> Promotion:
    """The promotion that is asked for. A preview always comes with the champion that it expects, '' being the base
    model."""
    said = bool(request.preview_hash or request.expected_champion)
    return Promotion(
        request.role, request.adapter_id, request.preview_hash, request.expected_champion if said else None,
        request.override, request.reason,
    )  # fmt: skip


def challenge_of(request: pb.SetTrafficRequest) -> Challenge:
    """The share that is asked for."""
    return Challenge(request.adapter_id, request.traffic, request.shadow)


def outcome_of(message: pb.Outcome) -> Outcome:
    """An outcome as the core has it."""
    latency = message.latency.seconds + message.latency.nanos / 1e9 if message.HasField("latency") else None
    return Outcome(
        message.request_id, message.role, message.adapter_id, latency, message.cost_micros, message.failed,
        message.compared_with, message.score if message.HasField("score") else None, message.unit,
        message.rating if message.HasField("rating") else None,
    )  # fmt: skip


def _fingerprint(request: Any) -> str:
    """Names a request apart from its idempotency key and the token of who sends it again."""
    plain = type(request)()
    plain.CopyFrom(request)
    for name in ("idempotency_key", "fencing_token"):
        if name in plain.DESCRIPTOR.fields_by_name:
            plain.ClearField(name)
    named = request.DESCRIPTOR.name.encode() + b"|" + plain.SerializeToString(deterministic=True)
    return hashlib.sha256(named).hexdigest()[:32]


def _point(point: Point, rules: Rules) -> pb.EvidencePoint:
    rate, lower, upper = win_rate(point.pairs)
    return pb.EvidencePoint(
        time=_timestamp(point.time), pairs=point.pairs.judged, win_rate=rate, win_rate_lower=lower,
        win_rate_upper=upper,        e_value=as_e_value(better_than_champion(point.pairs, rules)),
    )  # fmt: skip


def _timestamp(seconds: float) -> timestamp_pb2.Timestamp:
    stamp = timestamp_pb2.Timestamp()
    stamp.FromMicroseconds(round(seconds * 1e6))
    return stamp


def _duration(seconds: float) -> duration_pb2.Duration:
    duration = duration_pb2.Duration()
    duration.FromMicroseconds(round(seconds * 1e6))
    return duration
