"""What was seen of adapters in use, for the AdapterRegistry's evidence."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Outcome:
    """One answer of an adapter ('': the base model), or a judgement of it; see adapter_registry.proto.

    `unit`: what the split assigned it by, empty where the split did not choose; `score` against `compared_with`: 1, 0.5
    or 0, None where it was not judged.
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
