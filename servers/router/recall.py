"""Worked examples for the courier: where it was chosen, it is shown how like questions were answered best.

What is added counts: it has to fit the courier's context together with the longest answer, and what it costs is in the
decision, so that the money for it is set aside before the call.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import orjson

from hivemind.servers.common.catalogue import COURIER, EMBEDDED, Model, Policy
from hivemind.servers.common.tokens import prompt_size
from hivemind.servers.router.example_book import ExampleBook
from hivemind.servers.router.example_index import Hit
from hivemind.servers.router.json_splice import append_member, top_level
from hivemind.servers.router.metrics import RouterMetrics
from hivemind.servers.router.records import WorkedExample
from hivemind.servers.router.request import Body, Request
from hivemind.servers.router.roles import prompt
from hivemind.servers.router.selector import SINGLE, Decision, ModelState, Option, upper_cost
from hivemind.servers.router.work import Shown, Work

STRATEGIES: Final = (SINGLE, "cascade")
"""Those that send the client's own conversation to the courier; the others' prompts are full of their own."""
_REPETITION: Final = "repeat_penalty"
_INSTRUCTIONS: Final = ("system", "developer")
_SPOKEN: Final = frozenset({*_INSTRUCTIONS, "user", "assistant"})
_PLAIN: Final = frozenset({"role", "content", "name"})


@dataclass(frozen=True, slots=True)
class Recall:
    """Implements completion.Recalling. `consents`: whether a tenant may be learnt from; `clock` in seconds."""

    book: ExampleBook
    consents: Callable[[str], bool]
    metrics: RouterMetrics
    clock: Callable[[], float] = time.perf_counter

    def __call__(self, work: Work, decision: Decision, policy: Policy, states: Mapping[str, ModelState]) -> Decision:
        """The decision with what the examples cost and why; `work` has what the courier is shown."""
        request, option = work.request, decision.chosen
        if not policy.examples or not _takes_examples(request, option) or not self.consents(request.tenant):
            return decision
        if self.book.missing:
            work.record.degraded.append(f"no examples were shown: {self.book.missing}")
            return decision
        began = self.clock()
        hits = self.book.find(request.tenant, request.question, policy.examples)
        self.metrics.retrieval_seconds.observe(self.clock() - began)
        shown = _fitting(request, hits, option, policy, states[option.model.alias])
        if shown is None:
            return decision
        shown = replace(shown, plain_reason=decision.reason)
        work.shown, work.record.examples = shown, shown.examples
        return _told(decision, shown)


def _takes_examples(request: Request, option: Option) -> bool:
    """Whether the courier answers a conversation of plain texts that ends with a question."""
    if option.model.alias != COURIER or option.strategy not in STRATEGIES or request.adapter:
        return False
    messages = request.messages
    asked = bool(messages) and messages[-1]["role"] == "user" and bool(request.question.strip())
    return asked and not request.single_only and not request.images and all(map(_is_plain, messages))


def _is_plain(message: Mapping[str, Any]) -> bool:
    content = message.get("content")
    parts = content if isinstance(content, list) else []
    plain = isinstance(content, str) or (bool(parts) and all(p.get("type") == "text" for p in parts))
    return plain and message["role"] in _SPOKEN and _PLAIN.issuperset(k for k, v in message.items() if v is not None)


def _fitting(request: Request, hits: Sequence[Hit], option: Option, policy: Policy, state: ModelState) -> Shown | None:
    """As many of the examples, the nearest first, as leave room for the answer and cost no more than is allowed."""
    for count in range(len(hits), 0, -1):
        asked = with_examples(request, hits[:count], option.model)
        if asked is None:
            return None
        extra = upper_cost(asked, state) - upper_cost(request, state)
        if _has_room(asked, option.model) and not _too_dear(request, policy, option.cost_micros + extra):
            told = tuple(WorkedExample(h.exemplar.platinum_id, round(h.similarity, 4)) for h in hits[:count])
            return Shown(option.model.alias, asked, told, prompt("examples").version, extra)
    return None


def _has_room(asked: Request, model: Model) -> bool:
    """By the upper bound of the tokens: an example must never be why a prompt is too long or an answer cut off."""
    return asked.prompt.upper + (asked.max_tokens or model.max_output_tokens) <= model.context_tokens


def _too_dear(request: Request, policy: Policy, cost: int) -> bool:
    limits = (request.hints.max_cost_micros, policy.max_cost_micros)
    return any(limit is not None and cost > limit for limit in limits)


def with_examples(request: Request, hits: Sequence[Hit], model: Model) -> Request | None:
    """The request with examples in its instructions, the nearest last, where a small model heeds them most.

    None where the instructions are no text that something can be added to. The mesh's own engine is told not to hold
    repetition against the answer, unless the client says what it wants: it would be kept from repeating the example.
    """
    worked = "\n\n".join(f"Question: {h.exemplar.question}\nAnswer: {h.exemplar.answer}" for h in reversed(hits))
    text = prompt("examples").text.replace("{examples}", worked)
    first, rest = request.messages[0], request.messages[1:]
    if first["role"] not in _INSTRUCTIONS:
        messages = [{"role": "system", "content": text}, first, *rest]
    elif isinstance(first["content"], str):
        messages = [{**first, "content": f"{first['content']}\n\n{text}"}, *rest]
    else:
        return None
    raw = _spliced(request.body, messages)
    if model.adapters == EMBEDDED and all(m.key != _REPETITION for m in request.body.members):
        raw = append_member(raw, _REPETITION, b"1.0")
    body = Body(raw, top_level(raw), request.body.include_usage)
    return replace(request, messages=messages, body=body, prompt=prompt_size(len(raw), len(messages), 0))


def _spliced(body: Body, messages: Sequence[Mapping[str, Any]]) -> bytes:
    at = next(m for m in body.members if m.key == "messages")
    return body.raw[: at.value_start] + orjson.dumps(messages) + body.raw[at.end :]


def _told(decision: Decision, shown: Shown) -> Decision:
    """The decision with the examples in its costs and its reason."""
    options = tuple(
        replace(o, cost_micros=o.cost_micros + shown.extra_micros)
        if o.model.alias == shown.alias and o.strategy in STRATEGIES else o
        for o in decision.options
    )  # fmt: skip
    first = replace(decision.candidates[0], cost_micros=options[0].cost_micros)
    count, ids = len(shown.examples), ", ".join(e.platinum_id for e in shown.examples)
    what = "the platinum example" if count == 1 else f"{count} platinum examples"
    reason = f"{decision.reason.removesuffix('.')}; it is shown {what} {ids}."
    return replace(decision, options=options, candidates=(first, *decision.candidates[1:]), reason=reason)
