"""A request on its way through the Router, its answer, and a model server's refusal of it."""

from dataclasses import dataclass, field
from typing import Any

import orjson

from hivemind.servers.common.errors import MeshError
from hivemind.servers.common.spend import Hold
from hivemind.servers.router.records import Record, WorkedExample
from hivemind.servers.router.request import Request
from hivemind.servers.router.selector import Decision, Option
from hivemind.servers.router.sse import error_text


@dataclass(frozen=True, slots=True)
class Refined:
    """The refined answer, and the platinum example that it became."""

    answer: str
    platinum_id: str


@dataclass(frozen=True, slots=True)
class Shown:
    """A request with worked examples, as the model of one alias is asked. `extra_micros`: by how much its upper cost is
    above that of the request itself; `plain_reason`: the decision's reason without them."""

    alias: str
    request: Request
    examples: tuple[WorkedExample, ...]
    prompt_version: str
    extra_micros: int = 0
    plain_reason: str = ""

    @property
    def ids(self) -> tuple[str, ...]:
        """The platinum examples."""
        return tuple(e.platinum_id for e in self.examples)


@dataclass(slots=True)
class Work:
    """A request on its way: what was decided, and the record that grows with it."""

    request: Request
    record: Record
    decision: Decision | None = None
    hold: Hold = field(default_factory=lambda: Hold(0))
    option: Option | None = None
    ended: bool = False
    role: str = "worker"
    prompt_version: str = ""
    text: str = ""
    agreement: float | None = None
    """The share of a strategy's answers that agreed; None where there was but one."""
    alternatives: tuple[str, ...] = ()
    refined: Refined | None = None
    shown: Shown | None = None

    def shown_to(self, alias: str) -> Shown | None:
        """The worked examples that this model is shown, if any."""
        return self.shown if self.shown is not None and self.shown.alias == alias else None

    def asked(self, alias: str) -> Request:
        """The request as this model is asked."""
        shown = self.shown_to(alias)
        return self.request if shown is None else shown.request


@dataclass(slots=True)
class Answer:
    """A whole answer: its bytes as they came, and the same parsed."""

    work: Work
    raw: bytes
    parsed: dict[str, Any]


class UpstreamRefused(Exception):
    """A model server found fault with the request itself; status and body are for the client."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"the model server answered {status}")
        self.status, self.body = status, body


class BrokenOff(MeshError):
    """An answer that broke after the client had got a part of it: nothing else can take its place."""


def refusal_text(refused: UpstreamRefused) -> str:
    """What a model server said about a request that it refused."""
    try:
        body = orjson.loads(refused.body)
    except orjson.JSONDecodeError:
        return f"status {refused.status}"
    return error_text(body) if isinstance(body, dict) else f"status {refused.status}"
