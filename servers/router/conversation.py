"""What was said in a completion, kept for a while so that a later opinion on it can be learnt from. Pure.

Records hold no text; this is the one place that does, redacted, for tenants that consent to training, bounded in age
and number.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from hivemind.servers.common.redaction import redact_all
from hivemind.servers.common.turn import Turn
from hivemind.servers.router.request import Request, text_of_content

LARGEST: Final = 64 << 10
"""Bytes of a request above which its conversation is not kept."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation, its answer (`draft`), and other answers that a strategy had."""

    request_id: str
    tenant: str
    domain: str
    draft_model: str
    draft_adapter: str
    messages: tuple[Turn, ...]
    draft: str
    alternatives: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Conversation":
        """The conversation of what orjson made of one."""
        turns = tuple(Turn(**t) for t in data["messages"])
        return cls(**{**data, "messages": turns, "alternatives": tuple(data["alternatives"])})


def can_be_kept(request: Request, draft: str) -> bool:
    """Whether there is a text to learn from: tools and images cannot be learnt, and what is too large is not kept."""
    return bool(draft.strip()) and not request.tools and not request.images and len(request.body.raw) <= LARGEST


def turns_of(messages: Sequence[Any]) -> tuple[Turn, ...]:
    """The turns of a conversation in OpenAI's shape, as text."""
    return tuple(Turn(m["role"], text_of_content(m.get("content")), m.get("name") or "") for m in messages)


def redacted(conversation: Conversation) -> Conversation:
    """The same without secrets and personal data, under one numbering."""
    turns = conversation.messages
    texts, _ = redact_all([*(t.content for t in turns), conversation.draft, *conversation.alternatives])
    count = len(turns)
    return replace(
        conversation,
        messages=tuple(replace(t, content=text) for t, text in zip(turns, texts, strict=False)),
        draft=texts[count],
        alternatives=texts[count + 1 :],
    )
