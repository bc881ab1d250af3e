"""What promoting would do, and a hash that names it. Pure."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from hivemind.servers.adapter_registry.evidence import Arm, Evidence, Point
from hivemind.servers.adapter_registry.roles import Role
from hivemind.servers.adapter_registry.verdict import Assessment
from hivemind.servers.common.errors import MeshError

_PARTS: Final = ("role", "adapter", "champion", "verdict", "policy", "revision")
_PART_LENGTH: Final = 10


@dataclass(frozen=True, slots=True)
class Preview:
    """What promoting an adapter would do. `requests_per_day`: what it would serve; changes are its figures less the
    champion's."""

    role: str
    adapter_id: str
    champion: str
    assessment: Assessment
    evidence: Evidence
    hash: str
    requests_per_day: float
    latency_p95_change_s: float
    cost_per_1000_change_micros: int
    points: tuple[Point, ...] = ()


def preview(
    role: Role, adapter_id: str, sha256: str, evidence: Evidence, assessment: Assessment,
    *, policy: str, requests_per_day: float, points: Sequence[Point],
) -> Preview:  # fmt: skip
    """The preview of an adapter of this role."""
    own, champion = evidence.challenger, evidence.champion
    known = own.timed and champion.timed
    return Preview(
        role=role.name, adapter_id=adapter_id, champion=role.champion, assessment=assessment, evidence=evidence,
        hash=preview_hash(role, adapter_id, sha256, assessment.verdict, policy), requests_per_day=requests_per_day,
        latency_p95_change_s=own.quantile_s(0.95) - champion.quantile_s(0.95) if known else 0.0,
        cost_per_1000_change_micros=_per_1000(own) - _per_1000(champion) if own.requests and champion.requests else 0,
        points=tuple(points),
    )  # fmt: skip


def preview_hash(role: Role, adapter_id: str, sha256: str, verdict: str, policy: str) -> str:
    """Six short hashes in a row, one for each thing that a promotion rests on, so that a stale one tells what has
    changed.

    The revision is the role's own: what happens to other roles makes no preview stale. Running counts are not in it.
    """
    values = (role.name, f"{adapter_id} {sha256}", role.champion, verdict, policy, str(role.revision))
    return "-".join(hashlib.sha256(v.encode()).hexdigest()[:_PART_LENGTH] for v in values)


def check_hash(given: str, now: Preview) -> None:
    """STALE_PREVIEW unless the hash is that of the preview now; its metadata say what changed."""
    if given == now.hash:
        return
    old, new = given.split("-"), now.hash.split("-")
    changed = [n for n, a, b in zip(_PARTS, old, new, strict=True) if a != b] if len(old) == len(new) else ["unknown"]
    message = f"the preview is older than the state ({', '.join(changed)} changed); preview again"
    metadata = {"changed": ",".join(changed), **summary(now)}
    raise MeshError("STALE_PREVIEW", message, metadata=metadata)


def check_evidence(now: Preview) -> None:
    """EVIDENCE_MISSING, with the preview in the metadata, unless the verdict is PROMOTE."""
    if now.assessment.verdict != "PROMOTE":
        found = now.assessment
        message = f"the evidence for {now.adapter_id} says {found.verdict}, not PROMOTE: {found.reason}"
        raise MeshError("EVIDENCE_MISSING", message, metadata=summary(now))


def summary(now: Preview) -> Mapping[str, str]:
    """The preview as the metadata of an error."""
    found = now.assessment
    return {
        "role": now.role, "adapter_id": now.adapter_id, "expected_champion": now.champion, "verdict": found.verdict,
        "reason": found.reason, "preview_hash": now.hash, "requests_needed": str(found.needed),
        "win_rate": f"{found.win_rate:.4f}", "win_rate_lower": f"{found.lower:.4f}",
        "win_rate_upper": f"{found.upper:.4f}", "pairs": str(now.evidence.pairs.judged),
    }  # fmt: skip


def requests_per_day(hours: Sequence[int], minutes_into_hour: float) -> float:
    """From the requests of the latest hours, the running one first: scaled up where there are fewer than 24."""
    counted = list(hours[:24])
    while counted and not counted[-1]:
        counted.pop()
    if not counted:
        return 0.0
    span_h = len(counted) - 1 + max(minutes_into_hour, 1.0) / 60
    return sum(counted) * 24 / span_h


def _per_1000(arm: Arm) -> int:
    return round(arm.cost_micros * 1000 / arm.requests)
