"""What clients and the Judge thought of answers, one score each, for the cognitive map. Pure. No texts.

A stream of its own, fed in the same scripts that store a record or a feedback, so that none is lost between the two.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from hivemind.servers.router.feedback import Feedback, judged_alias
from hivemind.servers.router.records import Record

OPINIONS: Final = "router:opinions"
_MOST: Final = 100_000
TELL: Final = f"""
local function tell(key, opinion) redis.call('XADD', key, 'MAXLEN', '~', {_MOST}, '*', 'o', opinion) end
"""
"""The Lua function by which other scripts add an opinion."""


@dataclass(frozen=True, slots=True)
class Opinion:
    """One opinion. `source`: FEEDBACK or JUDGE; `score` in [0,1]; `created` in Unix seconds."""

    request_id: str
    tenant: str
    domain: str
    source: str
    alias: str
    adapter: str
    score: float
    created: float


def verdicts_of(record: Record) -> Iterator[Opinion]:
    """The Judge's scores of the proposals that an answer was made of."""
    for judged in record.judged:
        if judged.score is not None:
            yield Opinion(
                record.request_id, record.tenant, record.domain, "JUDGE", judged.alias,
                _adapter(record, judged.alias), judged.score, record.created,
            )  # fmt: skip


def opinion_of(record: Record, feedback: Feedback) -> Opinion | None:
    """What a client's feedback says of the answer's worth; None where it says nothing of it."""
    if feedback.verdict is None:
        return None
    alias = judged_alias(record)
    score = float(feedback.verdict)
    return Opinion(
        record.request_id, record.tenant, record.domain, "FEEDBACK", alias, _adapter(record, alias), score,
        feedback.created,
    )  # fmt: skip


def _adapter(record: Record, alias: str) -> str:
    """The adapter with which an alias answered last."""
    return next((c.adapter for c in reversed(record.calls) if c.alias == alias and not c.error), "")
