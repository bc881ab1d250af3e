"""What is kept of every request, so that each decision can be explained afterwards. No text of prompt or answer."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Tokens:
    """Tokens of a call or a request; `estimated` where a model server did not report them."""

    prompt: int = 0
    completion: int = 0
    estimated: bool = False

    def __add__(self, other: "Tokens") -> "Tokens":
        return Tokens(self.prompt + other.prompt, self.completion + other.completion, self.estimated or other.estimated)


@dataclass(frozen=True, slots=True)
class WorkedExample:
    """A platinum example that is shown, and the cosine between its question and the one asked."""

    platinum_id: str
    similarity: float


@dataclass(slots=True)
class Call:
    """One call to a model server. Times: Unix seconds and durations in seconds."""

    alias: str
    endpoint: str
    start: float
    role: str = "worker"
    prompt_version: str = ""
    model: str = ""
    adapter: str = ""
    latency_s: float = 0.0
    first_token_s: float | None = None
    http_status: int = 0
    usage: Tokens = field(default_factory=Tokens)
    cost_micros: int = 0
    error: str = ""
    failed: bool = False
    """Whether it was the model server that failed, and not the client or the request."""
    adapter_role: str = ""
    """The role whose adapter (`adapter`, or the base model) answered; empty for models without one."""
    examples: tuple[str, ...] = ()
    """The platinum examples that it was shown."""
    unit: str = ""
    """What the role's split assigned the adapter by; empty where the split did not choose."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way of answering that was considered. `rejected_because` is empty for the one taken."""

    strategy: str
    alias: str
    cost_micros: int
    quality: float | None = None
    latency_s: float | None = None
    rejected_because: str = ""


@dataclass(frozen=True, slots=True)
class Shadow:
    """What another policy would have decided."""

    policy: str
    strategy: str
    chosen_model: str
    reason: str


@dataclass(frozen=True, slots=True)
class Judged:
    """How the Judge found one proposal: its share of points in pairs (1 a win, 1/2 a tie), and its mean rubric score.

    `against_others`: the same share against proposals of other aliases only. None: no such comparison, no score.
    """

    alias: str
    points: float
    against_others: float | None = None
    score: float | None = None


@dataclass(slots=True)
class Record:
    """Everything that can be told about a request."""

    request_id: str
    created: float
    tenant: str
    session: str
    surface: str
    requested_model: str
    strategy: str = ""
    chosen_model: str = ""
    domain: str = ""
    reason: str = ""
    candidates: tuple[Candidate, ...] = ()
    calls: list[Call] = field(default_factory=list)
    usage: Tokens = field(default_factory=Tokens)
    cost_micros: int = 0
    latency_s: float = 0.0
    first_token_s: float | None = None
    outcome: str = ""
    degraded: list[str] = field(default_factory=list)
    prompt_sha256: str = ""
    master_cost_micros: int | None = None
    trace_id: str = ""
    propensity: float = 1.0
    policy: str = ""
    shadow: Shadow | None = None
    nomination: str = ""
    judged: tuple[Judged, ...] = ()
    examples: tuple[WorkedExample, ...] = ()
    """What the courier was to be shown."""
    estimate: tuple[float, float] | None = None
    """P(good enough) of courier and master by the quality gate itself, before anything else moved it."""

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Record":
        """The record of what orjson made of one. Fields that a newer version added are left out."""
        known = {k: v for k, v in data.items() if k in cls.__dataclass_fields__}
        known["candidates"] = tuple(Candidate(**c) for c in known.get("candidates", ()))
        known["shadow"] = Shadow(**known["shadow"]) if known.get("shadow") else None
        known["judged"] = tuple(Judged(**j) for j in known.get("judged", ()))
        known["examples"] = tuple(WorkedExample(**e) for e in known.get("examples", ()))
        known["usage"] = Tokens(**known.get("usage", {}))
        known["calls"] = [Call(**{**c, "usage": Tokens(**c["usage"])}) for c in known.get("calls", ())]
        return cls(**known)
