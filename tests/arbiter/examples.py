"""Examples for the tests of the ledger and its stream."""

from dataclasses import replace
from typing import Any

from hivemind.servers.arbiter.example import NewExample, Provenance
from hivemind.servers.common.turn import Turn

BASE = NewExample(
    messages=(Turn("system", "Answer briefly."), Turn("user", "What is the boiling point of water?")),
    draft="It boils at ninety degrees.",
    final_platinum_answer="Water boils at 100 °C at sea level.",
    refined_by="ORACLE",
    provenance=Provenance(
        draft_model="courier", oracle_model="deepseek-chat", score=0.93, draft_score=0.2,
        decisions=("The Oracle corrected the number.",), changes="90 became 100", cost_micros=120, latency_s=1.5,
    ),
    tenant="t1",
    domain="physics",
    confidence=0.9,
    licence="operator",
    consent="tenant:t1",
    origin="traffic",
)  # fmt: skip


def example(number: int = 0, **fields: Any) -> NewExample:
    """An example that `number` tells from others."""
    return replace(BASE, **{"request_id": f"request-{number}", "draft": f"draft {number}", **fields})
