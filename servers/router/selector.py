"""StrategySelector: which model and strategy answers a request. Pure; no I/O.

This first version knows the strategy `single` and ranks by availability, context length, price and hints. Quality is
not estimated yet, so no candidate carries one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from hivemind.servers.common.catalogue import EVERY_ALIAS, MASTER, Model
from hivemind.servers.common.errors import MeshError, Violation, invalid_field
from hivemind.servers.router.records import Candidate
from hivemind.servers.router.request import Request

STRATEGIES: Final = ("single", "cascade", "vote", "committee", "debate", "clone_dispatch")
BUILT: Final = ("single",)
STRONG_ABOVE: Final = 0.5
"""From a dial or difficulty above this the strongest model comes first, else the cheapest."""


@dataclass(frozen=True, slots=True)
class ModelState:
    """A model and what is known of it now. `latency_s` is a moving average, None before the first answer."""

    model: Model
    available: bool
    latency_s: float | None = None
    cost_ratio: float = 1.0
    """The largest ratio seen of what a call cost to its upper estimate, at least 1."""


@dataclass(frozen=True, slots=True)
class Option:
    """One way to answer: the model, and the upper estimate of what it costs in micro-USD."""

    model: Model
    cost_micros: int


@dataclass(frozen=True, slots=True)
class Decision:
    """What was decided: the options in the order in which they are tried, and why."""

    strategy: str
    options: tuple[Option, ...]
    reason: str
    candidates: tuple[Candidate, ...]
    domain: str
    degraded: tuple[str, ...] = ()

    @property
    def chosen(self) -> Option:
        """The first option."""
        return self.options[0]


def decide(request: Request, states: Mapping[str, ModelState], *, dial: float) -> Decision:
    """Decides. `dial` is the Governor's quality dial in [0,1]; raises MeshError where nothing can answer."""
    _check_strategy(request)
    named = not request.wants_auto
    pool = [_named(request, states)] if named else [s for s in states.values() if s.model.auto]
    rejected: list[Candidate] = []
    fitting: list[tuple[ModelState, Option]] = []
    for state in pool:
        cost = upper_cost(request, state)
        problem = _problem(request, state, cost, named=named)
        if problem:
            rejected.append(_candidate(state, cost, problem))
        else:
            fitting.append((state, Option(state.model, cost)))
    if not fitting:
        raise _nothing_fits(request, rejected, named=named)
    strong = _wants_strong(request, dial)
    ranked = sorted(fitting, key=lambda pair: _rank(pair[0], pair[1], strong=strong))
    return _decision(request, ranked, rejected, states, strong=strong)


def upper_cost(request: Request, state: ModelState) -> int:
    """The most that a call of this model may cost, in micro-USD."""
    model = state.model
    if model.free:
        return 0
    answer = (request.max_tokens or model.max_output_tokens) * request.choices
    return int(model.cost_micros(request.prompt.upper, answer) * state.cost_ratio) + 1


def _rank(state: ModelState, option: Option, *, strong: bool) -> tuple[bool, float, float, str]:
    price = state.model.input_price + state.model.output_price
    latency = state.latency_s or 0.0
    return (not state.available, -price if strong else price, latency, state.model.alias)


def _wants_strong(request: Request, dial: float) -> bool:
    wish = dial if request.hints.quality_dial is None else request.hints.quality_dial
    return max(wish, request.hints.difficulty or 0.0) > STRONG_ABOVE


def _check_strategy(request: Request) -> None:
    strategy = request.hints.strategy
    if strategy and strategy not in STRATEGIES:
        known = ", ".join(STRATEGIES)
        raise invalid_field("hints.strategy", f"{strategy!r} is none of {known}", reason="UNKNOWN_STRATEGY")
    if strategy and strategy not in BUILT:
        description = f"{strategy} is not built yet in this version; built: {', '.join(BUILT)}"
        raise invalid_field("hints.strategy", description, reason="HINTS_NOT_MET")


def _named(request: Request, states: Mapping[str, ModelState]) -> ModelState:
    alias, _, adapter = request.model.partition(":")
    state = states.get(alias)
    if state is None:
        text = f"{alias!r} has no endpoint here; configure [models.{alias}] in hivemind.toml"
        known = ", ".join(["auto", *states])
        unknown = f"{request.model!r} is not a model of this mesh; ask for one of {known}"
        raise invalid_field("model", text if alias in EVERY_ALIAS else unknown, reason="UNKNOWN_MODEL")
    if adapter and adapter != "base":
        raise invalid_field("model", f"no adapter {adapter!r} is registered for {alias}", reason="UNKNOWN_MODEL")
    return state


def _problem(request: Request, state: ModelState, cost: int, *, named: bool) -> str:
    """Why a model cannot take the request; empty if it can."""
    model, hints = state.model, request.hints
    needed = request.prompt.expected + (request.max_tokens or 1)
    if needed > model.context_tokens:
        return f"about {needed} tokens do not fit its context of {model.context_tokens}"
    if hints.max_cost_micros is not None and cost > hints.max_cost_micros:
        return f"its upper cost of {cost} micro-USD is above max_cost_micros"
    if hints.max_latency_s is not None and state.latency_s is not None and state.latency_s > hints.max_latency_s:
        return f"it takes about {state.latency_s:.1f} s, longer than max_latency"
    if request.images and not model.images:
        return "it takes no images"
    if request.tools and not model.tools and not named:
        return "it takes no tools"
    return ""


def _candidate(state: ModelState, cost: int, rejected_because: str) -> Candidate:
    return Candidate("single", state.model.alias, cost, latency_s=state.latency_s, rejected_because=rejected_because)


def _decision(
    request: Request,
    ranked: list[tuple[ModelState, Option]],
    rejected: list[Candidate],
    states: Mapping[str, ModelState],
    *,
    strong: bool,
) -> Decision:
    first, _ = ranked[0]
    order = "the strongest" if strong else "the cheapest"
    if not request.wants_auto:
        reason = f"{request.model} was asked for by name."
    elif len(ranked) == 1:
        reason = f"{first.model.alias} is the only model that can take the request."
    else:
        reason = f"{first.model.alias} is {order} of {len(ranked)} models that can take the request."
    late = f"not {order}" if first.available else "not available"
    candidates = [_candidate(first, ranked[0][1].cost_micros, "")]
    candidates += [
        _candidate(s, o.cost_micros, f"comes after {first.model.alias}: {late if s.available else 'not available'}")
        for s, o in ranked[1:]
    ]
    degraded = []
    if request.wants_auto and MASTER not in states:
        degraded.append("no master model is configured")
    return Decision(
        strategy="single",
        options=tuple(o for _, o in ranked),
        reason=reason,
        candidates=(*candidates, *rejected),
        domain=request.hints.domain or "general",
        degraded=tuple(degraded),
    )


def _nothing_fits(request: Request, rejected: list[Candidate], *, named: bool) -> MeshError:
    if not rejected:
        return MeshError("NO_MODEL_AVAILABLE", "no model is configured for auto; see [models.courier] in hivemind.toml")
    text = "; ".join(f"{c.alias}: {c.rejected_because}" for c in rejected)
    if all("fit its context" in c.rejected_because for c in rejected):
        return invalid_field("messages", text, reason="CONTEXT_LENGTH_EXCEEDED")
    if any("images" in c.rejected_because for c in rejected):
        return invalid_field("messages", text)
    fields = []
    if any("max_cost" in c.rejected_because for c in rejected):
        fields.append(Violation("hints.max_cost_micros", text))
    if any("max_latency" in c.rejected_because for c in rejected):
        fields.append(Violation("hints.max_latency", text))
    if not fields:
        fields.append(Violation("model" if named else "messages", text))
    return MeshError("HINTS_NOT_MET", text, violations=tuple(fields))
