"""StrategySelector: which strategy and model answers a request. Pure; no I/O, microseconds.

Every option has an expected quality, an upper cost and an expected time. For `auto` the one with the largest utility

    quality - lambda * cost / reference - mu * seconds

is taken; `reference` is the cost of the dearest single call that fits, so that lambda says how much quality a whole
such call is worth: 0.6 * (1 - dial)^2, doubled while the tenant's budget is short. What a strategy of several calls
adds to one call's quality is an assumption (LIFT), scaled by 4p(1-p): where a model is always or never right, asking
again changes nothing.
"""

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from hivemind.servers.common.catalogue import COURIER, EVERY_ALIAS, MASTER, Model
from hivemind.servers.common.errors import MeshError, Violation, invalid_field
from hivemind.servers.router.gate.model import Estimate
from hivemind.servers.router.known_domains import KnownDomain
from hivemind.servers.router.records import Candidate
from hivemind.servers.router.request import Request

SINGLE: Final = "single"
STRATEGIES: Final = (SINGLE, "cascade", "vote", "committee", "debate", "clone_dispatch")
INNER_TOKENS: Final = 256
"""Most tokens of a call inside a strategy."""
INNER_BYTES: Final = 6_000
"""Most bytes that a role's instructions and quoted answers add to the prompt of such a call."""
VOTES: Final = 5
PROPOSERS: Final = 3
ROUNDS: Final = 2
ITEMS_MAX: Final = 8
ITEM_BYTES: Final = 4_000
"""Most bytes of a named sub-task: with a role's instructions it stays within INNER_BYTES."""
LIFT: Final[Mapping[str, float]] = {"vote": 0.05, "committee": 0.08, "debate": 0.06, "clone_dispatch": 0.02}
"""Expected gain at p = 0.5, cautious readings of self-consistency, Mixture-of-Agents and multi-agent debate."""
THOROUGH_ABOVE: Final = 0.6
"""`auto` takes several calls of a model only where dial or difficulty are above this."""
UNKNOWN: Final = Estimate(weak=0.6, strong=0.8, unknown=0.5, domain="general")
_LAMBDA: Final = 0.6
_MU: Final = 0.003
_CASCADE_SKILL: Final = 0.3
_EXPLORE_MICROS: Final = 1_000
_DIFFICULTY: Final = 4.0


@dataclass(frozen=True, slots=True)
class ModelState:
    """A model and what is known of it now. `latency_s` is a moving average, None before the first answer."""

    model: Model
    available: bool
    latency_s: float | None = None
    cost_ratio: float = 1.0
    """The largest ratio seen of what a call cost to its upper estimate, at least 1."""
    adapters: Sequence[str] = ()
    """The adapters that can be asked for by name."""


Skill = Callable[[str, str, float], float]
"""(alias, domain, P(good enough) by the gate) -> the same, after what was learned in use."""


def no_skill(alias: str, domain: str, p: float) -> float:
    """Nothing was learned yet."""
    return p


Known = Callable[[str], KnownDomain | None]
"""A domain -> what the cognitive map says of it."""


def nothing_known(domain: str) -> KnownDomain | None:
    """There is no map."""
    return None


@dataclass(frozen=True, slots=True)
class Situation:
    """What a decision depends on besides the request and the models.

    `dial`: the Governor's in [0,1]; `pressure`: 1 while the tenant's budget is short; `explore`: the share of requests
    that try the runner-up; `estimate`: None where the gate was not asked.
    """

    dial: float = 0.5
    pressure: float = 0.0
    explore: float = 0.0
    estimate: Estimate | None = None
    allowed_models: frozenset[str] = frozenset()
    allowed_strategies: frozenset[str] = frozenset()
    max_cost_micros: int | None = None
    skill: Skill = no_skill
    known: Known = nothing_known


@dataclass(frozen=True, slots=True)
class Option:
    """One way to answer, and the upper estimate of what it costs in micro-USD. `team`: the proposers of a committee.

    `expected`: (alias, P(good enough) of one call of it) for each alias of such a team.
    """

    model: Model
    cost_micros: int
    strategy: str = SINGLE
    team: tuple[Model, ...] = ()
    quality: float | None = None
    latency_s: float | None = None
    available: bool = True
    expected: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Decision:
    """What was decided: the options in the order in which they are tried, and why."""

    strategy: str
    options: tuple[Option, ...]
    reason: str
    candidates: tuple[Candidate, ...]
    domain: str
    degraded: tuple[str, ...] = ()
    propensity: float = 1.0

    @property
    def chosen(self) -> Option:
        """The first option."""
        return self.options[0]


def decide(
    request: Request, states: Mapping[str, ModelState], situation: Situation, rng: random.Random | None = None
) -> Decision:
    """Decides. Without `rng` nothing is explored. MeshError where nothing can answer."""
    _check_strategy(request, situation)
    named = not request.wants_auto
    if named and not request.hints.strategy:
        return _named_single(request, _named(request, states), situation)
    pool = [_named(request, states)] if named else [s for s in states.values() if s.model.auto]
    rejected: list[Candidate] = []
    fitting: list[Option] = []
    for option in _options(request, pool, states, situation, named=named):
        problem = _problem(request, option, situation, named=named)
        if problem:
            rejected.append(_candidate(option, problem))
        else:
            fitting.append(option)
    wished = request.hints.strategy
    if not any(wished in ("", o.strategy) for o in fitting):
        raise _nothing_fits(request, [c for c in rejected if wished in ("", c.strategy)], named=named)
    worth = _utilities(fitting, _lambda(request, situation))
    ranked = sorted(
        fitting,
        key=lambda o: (
            wished not in ("", o.strategy), not o.available, -worth[id(o)], o.cost_micros, o.model.alias,
        ),
    )  # fmt: skip
    ranked, propensity = _explored(ranked, situation.explore, rng)
    return _decision(request, ranked, rejected, states, situation, propensity)


def upper_cost(request: Request, state: ModelState) -> int:
    """The most that one call of this model for the request itself may cost, in micro-USD."""
    model = state.model
    if model.free:
        return 0
    answer = (request.max_tokens or model.max_output_tokens) * request.choices
    return int(model.cost_micros(request.prompt.upper, answer) * state.cost_ratio) + 1


def inner_cost(request: Request, model: Model, cost_ratio: float = 1.0, *, tokens: int | None = None) -> int:
    """The most that a call inside a strategy may cost, in micro-USD. `tokens`: the most that it writes."""
    if model.free:
        return 0
    written = tokens or inner_tokens(request)
    return int(model.cost_micros(request.prompt.upper + INNER_BYTES, written) * cost_ratio) + 1


def inner_tokens(request: Request) -> int:
    """Most tokens of a call inside a strategy whose words may reach the client; the others may write INNER_TOKENS."""
    return min(INNER_TOKENS, request.max_tokens or INNER_TOKENS)


def _options(
    request: Request,
    pool: Sequence[ModelState],
    states: Mapping[str, ModelState],
    situation: Situation,
    *,
    named: bool,
) -> Iterator[Option]:
    """Where `auto` was asked for a strategy, single calls stand by for its failure."""
    quality = _qualities(request, pool, situation)
    wished = request.hints.strategy
    wanted = STRATEGIES if not wished else (wished,) if named or wished == SINGLE else (wished, SINGLE)
    judge = next((states[a] for a in ("judge", "arbiter", MASTER) if a in states), None)
    for state in pool:
        p = quality[state.model.alias]
        for strategy in wanted:
            option = _option(strategy, request, state, p, pool, judge, quality)
            if option is not None:
                yield option


def _option(
    strategy: str,
    request: Request,
    state: ModelState,
    p: float,
    pool: Sequence[ModelState],
    judge: ModelState | None,
    quality: Mapping[str, float],
) -> Option | None:
    model, spread, seconds = state.model, 4 * p * (1 - p), state.latency_s
    inner = inner_cost(request, model, state.cost_ratio)
    judging = 0
    if judge is not None:
        judging = inner_cost(request, judge.model, judge.cost_ratio, tokens=INNER_TOKENS)
    if strategy == SINGLE:
        return Option(model, upper_cost(request, state), SINGLE, (), p, seconds, state.available)
    if strategy == "cascade":
        strong = max(pool, key=lambda s: s.model.input_price + s.model.output_price)
        if strong is state or len(pool) < 2:
            return None
        best = quality[strong.model.alias]
        share = 1 - p
        reached = p + (best - p) * (share + _CASCADE_SKILL * share * (1 - share))
        cost = upper_cost(request, state) + upper_cost(request, strong)
        return Option(model, cost, strategy, (strong.model,), reached, _times(seconds, 1.5), state.available)
    better = min(0.99, p + LIFT[strategy] * spread)
    if strategy == "vote":
        return Option(model, VOTES * inner, strategy, (), better, _times(seconds, 2), state.available)
    if strategy == "committee":
        others = [s.model for s in pool if s is not state and s.available]
        team = tuple([model, *others][i % (1 + len(others))] for i in range(PROPOSERS))
        cost = sum(inner_cost(request, m) for m in team) + 6 * judging + inner
        expected = tuple((alias, quality[alias]) for alias in dict.fromkeys(m.alias for m in team))
        return Option(model, cost, strategy, team, better, _times(seconds, 4), state.available, expected)
    if strategy == "debate":
        return Option(model, PROPOSERS * ROUNDS * inner, strategy, (), better, _times(seconds, 3), state.available)
    items = len(request.hints.subtasks) or ITEMS_MAX
    splitting = 0 if request.hints.subtasks else inner_cost(request, model, state.cost_ratio, tokens=INNER_TOKENS)
    return Option(model, splitting + (items + 1) * inner, strategy, (), better, _times(seconds, 3), state.available)


def _times(seconds: float | None, factor: float) -> float | None:
    return None if seconds is None else seconds * factor


def _qualities(request: Request, pool: Sequence[ModelState], situation: Situation) -> dict[str, float]:
    """P(good enough) by alias: courier and master by the gate, others between them by price."""
    known = situation.estimate or UNKNOWN
    weak = (1 - known.unknown) * known.weak + known.unknown * min(known.weak, max(0.05, known.strong - known.far))
    strong, hard = known.strong, (request.hints.difficulty if request.hints.difficulty is not None else 0.5) - 0.5
    domain = _domain(request, situation)
    mapped = situation.known(domain)
    moved = mapped.shift if mapped is not None else 0.0
    weak, strong = _shift(weak, moved - _DIFFICULTY * hard), _shift(strong, -_DIFFICULTY / 4 * hard)
    order = sorted(pool, key=lambda s: (s.model.input_price + s.model.output_price, s.model.alias))
    last = max(1, len(order) - 1)
    found = {s.model.alias: weak + (strong - weak) * i / last for i, s in enumerate(order)}
    fixed = {COURIER: weak, MASTER: strong}
    return {alias: situation.skill(alias, domain, fixed.get(alias, p)) for alias, p in found.items()}


def _domain(request: Request, situation: Situation) -> str:
    return request.hints.domain or (situation.estimate or UNKNOWN).domain


def _shift(p: float, by: float) -> float:
    p = min(0.99, max(0.01, p))
    return 1 / (1 + math.exp(-(math.log(p / (1 - p)) + by)))


def _dial(request: Request, situation: Situation) -> float:
    return situation.dial if request.hints.quality_dial is None else request.hints.quality_dial


def _lambda(request: Request, situation: Situation) -> float:
    return _LAMBDA * (1 - _dial(request, situation)) ** 2 * (1 + situation.pressure)


def _utilities(options: Sequence[Option], weight: float) -> dict[int, float]:
    singles = [o.cost_micros for o in options if o.strategy == SINGLE] or [o.cost_micros for o in options]
    reference = max(1, *singles)
    return {
        id(o): (o.quality or 0.0) - weight * o.cost_micros / reference - _MU * (o.latency_s or 0.0) for o in options
    }


def _explored(ranked: list[Option], rate: float, rng: random.Random | None) -> tuple[list[Option], float]:
    """Now and then the runner-up among single calls goes first, where that costs little; with its propensity."""
    first = ranked[0]
    others = [
        o for o in ranked[1:]
        if o.strategy == SINGLE and o.available and o.cost_micros - first.cost_micros <= _EXPLORE_MICROS
    ]  # fmt: skip
    if rng is None or rate <= 0 or first.strategy != SINGLE or not others:
        return ranked, 1.0
    if rng.random() >= rate:
        return ranked, 1.0 - rate
    return [others[0], *(o for o in ranked if o is not others[0])], rate


def _check_strategy(request: Request, situation: Situation) -> None:
    strategy = request.hints.strategy
    if strategy and strategy not in STRATEGIES:
        known = ", ".join(STRATEGIES)
        raise invalid_field("hints.strategy", f"{strategy!r} is none of {known}", reason="UNKNOWN_STRATEGY")
    if request.single_only and strategy not in ("", SINGLE):
        text = f"{strategy} cannot be combined with tools, n > 1, logprobs, response_format or images; use single"
        raise invalid_field("hints.strategy", text, reason="HINTS_NOT_MET")
    if strategy and situation.allowed_strategies and strategy not in situation.allowed_strategies:
        raise invalid_field("hints.strategy", f"the policy does not allow {strategy}", reason="HINTS_NOT_MET")
    if len(request.hints.subtasks) > ITEMS_MAX:
        raise invalid_field("hints.subtasks", f"must hold at most {ITEMS_MAX} texts")
    if any(len(text.encode(errors="replace")) > ITEM_BYTES for text in request.hints.subtasks):
        raise invalid_field("hints.subtasks", f"each text must be at most {ITEM_BYTES} bytes")


def _named(request: Request, states: Mapping[str, ModelState]) -> ModelState:
    alias, adapter = request.alias, request.adapter
    state = states.get(alias)
    if state is None:
        text = f"{alias!r} has no endpoint here; configure [models.{alias}] in hivemind.toml"
        known = ", ".join(["auto", *states])
        unknown = f"{request.model!r} is not a model of this mesh; ask for one of {known}"
        raise invalid_field("model", text if alias in EVERY_ALIAS else unknown, reason="UNKNOWN_MODEL")
    if adapter and adapter != "base" and adapter not in state.adapters:
        raise invalid_field("model", f"no adapter {adapter!r} is registered for {alias}", reason="UNKNOWN_MODEL")
    return state


def _named_single(request: Request, state: ModelState, situation: Situation) -> Decision:
    """The hot path: one model, asked for by name, one call."""
    option = Option(state.model, upper_cost(request, state), SINGLE, (), None, state.latency_s, state.available)
    problem = _problem(request, option, situation, named=True)
    if problem:
        raise _nothing_fits(request, [_candidate(option, problem)], named=True)
    return Decision(
        SINGLE, (option,), f"{request.model} was asked for by name.", (_candidate(option, ""),),
        request.hints.domain or "general",
    )  # fmt: skip


def _problem(request: Request, option: Option, situation: Situation, *, named: bool) -> str:
    """Why an option cannot take the request; empty if it can."""
    model, hints, multiple = option.model, request.hints, option.strategy not in (SINGLE, "cascade")
    needed = request.prompt.expected + (request.max_tokens or 1)
    if multiple:
        needed += INNER_BYTES // 4 + INNER_TOKENS
    if needed > model.context_tokens:
        return f"about {needed} tokens do not fit its context of {model.context_tokens}"
    if situation.allowed_models and model.alias not in situation.allowed_models:
        return f"the policy does not allow {model.alias}"
    if situation.allowed_strategies and option.strategy not in situation.allowed_strategies:
        return f"the policy does not allow {option.strategy}"
    if hints.max_cost_micros is not None and option.cost_micros > hints.max_cost_micros:
        return f"its upper cost of {option.cost_micros} micro-USD is above max_cost_micros"
    if situation.max_cost_micros is not None and option.cost_micros > situation.max_cost_micros:
        return f"the policy does not allow an upper cost of {option.cost_micros} micro-USD"
    if hints.max_latency_s is not None and option.latency_s is not None and option.latency_s > hints.max_latency_s:
        return f"it takes about {option.latency_s:.1f} s, longer than max_latency"
    if request.images and not model.images:
        return "it takes no images"
    if request.tools and not model.tools and not named:
        return "it takes no tools"
    if request.single_only and option.strategy != SINGLE:
        return "tools, n, logprobs and response_format need a single call"
    return "" if hints.strategy else _not_by_itself(request, option, situation)


def _not_by_itself(request: Request, option: Option, situation: Situation) -> str:
    """Why `auto` does not take an option that nobody asked for."""
    if option.strategy == SINGLE:
        return ""
    if option.strategy == "cascade":
        return "a stream would wait for the whole answer of the first model" if request.stream else ""
    if option.strategy == "clone_dispatch" and not request.hints.subtasks:
        return "no subtasks were named"
    wish = max(_dial(request, situation), request.hints.difficulty or 0.0)
    mapped = situation.known(_domain(request, situation))
    if wish > THOROUGH_ABOVE or (mapped is not None and mapped.weak):
        return ""
    return f"neither dial nor difficulty are above {THOROUGH_ABOVE:g}"


def _candidate(option: Option, rejected_because: str) -> Candidate:
    return Candidate(
        option.strategy, option.model.alias, option.cost_micros, option.quality, option.latency_s, rejected_because
    )


def _decision(
    request: Request,
    ranked: list[Option],
    rejected: list[Candidate],
    states: Mapping[str, ModelState],
    situation: Situation,
    propensity: float,
) -> Decision:
    first, rest = ranked[0], ranked[1:]
    candidates = [_candidate(first, "")]
    for option in rest:
        why = "its utility is lower" if option.available else "not available"
        if request.hints.strategy not in ("", option.strategy):
            why = f"{first.strategy} was asked for"
        candidates.append(_candidate(option, f"comes after {first.strategy} by {first.model.alias}: {why}"))
    degraded = []
    if request.wants_auto and MASTER not in states:
        degraded.append("no master model is configured")
    return Decision(
        strategy=first.strategy,
        options=(first, *(o for o in rest if o.strategy == SINGLE)),
        reason=_reason(request, first, rest, situation, explored=propensity < 0.5),
        candidates=(*candidates, *rejected),
        domain=_domain(request, situation),
        degraded=tuple(degraded),
        propensity=propensity,
    )


def _reason(request: Request, first: Option, rest: Sequence[Option], situation: Situation, *, explored: bool) -> str:
    """One sentence that a person can check against the candidates."""
    alias, estimate = first.model.alias, situation.estimate
    if request.hints.strategy:
        return f"{first.strategy} was asked for; {alias} is the best model for it."
    if not rest:
        return f"{alias} is the only model that can take the request."
    if explored:
        return f"{alias} was tried as an exploration; {rest[0].model.alias} would have been taken."
    other = next((o for o in rest if o.model is not first.model), rest[0])
    known = f"a question of {estimate.domain}" if estimate is not None else "this request"
    doubt = " (little is known of this domain)" if estimate is not None and estimate.unknown > 0.5 else ""
    mapped = situation.known(_domain(request, situation))
    doubt += mapped.said if mapped is not None else ""
    gap = (other.quality or 0.0) - (first.quality or 0.0)
    dial = _dial(request, situation)
    if not other.available:
        return f"{alias} answers because {other.model.alias} is not available."
    if gap > 0:
        price = "costs less" if first.cost_micros < other.cost_micros else "is faster"
        verdict = f"{other.model.alias} would be right {gap:+.0%} more often, too little for dial {dial:g}"
        return f"For {known}{doubt} {alias} is right about {first.quality:.0%} of the time and {price}; {verdict}."
    return (
        f"For {known}{doubt} {first.strategy} by {alias} is right about {first.quality:.0%} of the time, "
        f"{other.model.alias} {other.quality:.0%}; at dial {dial:g} that is worth its price."
    )


def _nothing_fits(request: Request, rejected: list[Candidate], *, named: bool) -> MeshError:
    if not rejected:
        if request.hints.strategy:
            text = f"{request.hints.strategy} needs more models than are configured or named"
            return invalid_field("hints.strategy", text, reason="HINTS_NOT_MET")
        return MeshError("NO_MODEL_AVAILABLE", "no model is configured for auto; see [models.courier] in hivemind.toml")
    told = [c for c in rejected if _telling(c, rejected)]
    text = "; ".join(f"{c.strategy} by {c.alias}: {c.rejected_because}" for c in told)
    if all("fit its context" in c.rejected_because for c in told):
        return invalid_field("messages", text, reason="CONTEXT_LENGTH_EXCEEDED")
    if any("images" in c.rejected_because for c in rejected):
        return invalid_field("messages", text)
    fields = []
    if any("max_cost" in c.rejected_because for c in rejected):
        fields.append(Violation("hints.max_cost_micros", text))
    if any("max_latency" in c.rejected_because for c in rejected):
        fields.append(Violation("hints.max_latency", text))
    if any("the policy" in c.rejected_because for c in rejected):
        fields.append(Violation("model" if named else "x-hivemind-policy", text))
    if not fields:
        fields.append(Violation("model" if named else "messages", text))
    return MeshError("HINTS_NOT_MET", text, violations=tuple(fields))


def _telling(candidate: Candidate, rejected: Sequence[Candidate]) -> bool:
    """Single calls say why; the others only where no single call was looked at."""
    return candidate.strategy == SINGLE or all(c.strategy != SINGLE for c in rejected)
