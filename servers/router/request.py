"""A request as the Router's core sees it, whatever door it came through."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hivemind.servers.common.tokens import PromptSize
from hivemind.servers.router.json_splice import BodyTemplate, Member, make_template


@dataclass(frozen=True, slots=True)
class Hints:
    """What the client wishes; None or empty where it said nothing. See common.proto."""

    strategy: str = ""
    max_cost_micros: int | None = None
    max_latency_s: float | None = None
    difficulty: float | None = None
    domain: str = ""
    quality_dial: float | None = None
    subtasks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Body:
    """The request in OpenAI's shape, as bytes, with where its members stand."""

    raw: bytes
    members: list[Member]
    include_usage: bytes | None = None
    """The value of stream_options with include_usage set, where the Router adds it."""

    def template(self, *, cap: int | None) -> BodyTemplate:
        """The body for model servers; `cap` is a max_completion_tokens to add."""
        replace: dict[str, bytes] = {}
        add: dict[str, bytes] = {}
        if self.include_usage is not None:
            has = any(m.key == "stream_options" for m in self.members)
            (replace if has else add)["stream_options"] = self.include_usage
        if cap is not None:
            has = any(m.key == "max_completion_tokens" for m in self.members)  # there and null
            (replace if has else add)["max_completion_tokens"] = str(cap).encode()
        return make_template(self.raw, self.members, replace=replace, add=add, cut=frozenset({"hivemind"}))


@dataclass(frozen=True, slots=True)
class Request:
    """One completion to make. `deadline` and `arrived` are monotonic seconds, `created` Unix seconds."""

    request_id: str
    tenant: str
    session: str
    surface: str
    model: str
    body: Body
    prompt: PromptSize
    prompt_sha256: str
    arrived: float
    created: float
    deadline: float
    max_tokens: int | None = None
    choices: int = 1
    messages: Sequence[Any] = ()
    tools: bool = False
    single_only: bool = False
    """Tools, n > 1, logprobs or response_format: what a strategy of several calls could not give back."""
    images: bool = False
    stream: bool = False
    refuse_on_budget: bool = False
    hints: Hints = field(default_factory=Hints)
    traceparent: str = ""
    tracestate: str = ""
    policy: str = ""
    refine: bool = False

    @property
    def wants_auto(self) -> bool:
        """Whether the Router may choose."""
        return self.model in ("", "auto")

    @property
    def alias(self) -> str:
        """The model asked for, without an adapter."""
        return self.model.partition(":")[0]

    @property
    def adapter(self) -> str:
        """The adapter asked for by name, `base` for none of them, empty where the role's split chooses."""
        return self.model.partition(":")[2]

    @property
    def question(self) -> str:
        """The text of the last message of the user, for the quality gate."""
        for message in reversed(self.messages):
            if message.get("role") == "user":
                return text_of_content(message.get("content"))
        return ""


def text_of_content(content: Any) -> str:
    """The text of a message's content, which may be a list of parts."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "\n".join(p["text"] for p in parts if isinstance(p, dict) and isinstance(p.get("text"), str))
