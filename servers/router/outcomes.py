"""What was seen of adapters in use, for the AdapterRegistry's evidence."""

from dataclasses import dataclass

from hivemind.servers.router.records import Record


@dataclass(frozen=True, slots=True)
class Outcome:
    """One answer of an adapter ('': the base model), or a judgement of it; see adapter_registry.proto.

    `unit`: what the split assigned it by, empty where the split did not choose; `score` against `compared_with`: 1, 0.5
    or 0, None where it was not judged; `rating`: a person's opinion, 1 or -1, None without one.
    """

    request_id: str
    role: str
    adapter_id: str
    latency_s: float | None = None
    cost_micros: int = 0
    failed: bool = False
    unit: str = ""
    compared_with: str = ""
    score: float | None = None
    rating: int | None = None


def outcomes_of(record: Record) -> tuple[Outcome, ...]:
    """What the calls of a request tell of adapters. A call that the client or the request ended tells nothing."""
    calls = [c for c in record.calls if c.adapter_role and (c.failed or not c.error)]
    return tuple(
        Outcome(
            record.request_id if i == 0 else f"{record.request_id}.{i}", c.adapter_role, c.adapter,
            None if c.failed else c.latency_s, c.cost_micros, c.failed, c.unit,
        )
        for i, c in enumerate(calls)
    )  # fmt: skip


def rated(record: Record, rating: int) -> Outcome | None:
    """What an opinion tells of the adapter whose answer it is about; None where no role answered or it is neutral."""
    answered = [c for c in record.calls if not c.error]
    if not rating or not answered or not answered[-1].adapter_role:
        return None
    return Outcome(record.request_id, answered[-1].adapter_role, answered[-1].adapter, rating=rating)
