"""Makes completions: decides, holds the money, calls models with retries and fallback, accounts for it all.

Retries and fallback happen before the first byte only. What was sent to a client is never taken back.
"""

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Protocol

from hivemind.servers.common.catalogue import MASTER, Catalogue, Endpoint, Model, Policy
from hivemind.servers.common.errors import MeshError, invalid_field
from hivemind.servers.common.spend import BudgetBook
from hivemind.servers.router.adapters import Choice, answered_with
from hivemind.servers.router.fleet import Fleet
from hivemind.servers.router.gate.model import Estimate
from hivemind.servers.router.gate.taxonomy import Taxonomy
from hivemind.servers.router.judge import FlipRate, Judge
from hivemind.servers.router.metrics import RouterMetrics
from hivemind.servers.router.model_answers import (
    AttemptFailed,
    answer_bytes,
    checked_answer,
    raise_for,
    tokens_of,
    too_long,
)
from hivemind.servers.router.open_stream import OpenStream
from hivemind.servers.router.ports import Upstream, UpstreamError, UpstreamResponse
from hivemind.servers.router.recorder import Entry
from hivemind.servers.router.records import Call, Record, Shadow, Tokens
from hivemind.servers.router.request import Request
from hivemind.servers.router.roles import RoleFailed
from hivemind.servers.router.selector import (
    SINGLE,
    Decision,
    Known,
    ModelState,
    Option,
    Situation,
    Skill,
    decide,
    no_skill,
    nothing_known,
)
from hivemind.servers.router.sse import BrokenStream, first_text, text_of
from hivemind.servers.router.strategies import BY_NAME, Task
from hivemind.servers.router.strategy_calls import Audience, StrategyCaller, StrategyStream, composed, relayed
from hivemind.servers.router.work import Answer, BrokenOff, UpstreamRefused, Work

PATH: Final = "/chat/completions"
MAX_ANSWER_BYTES: Final = 64 << 20
MAX_ATTEMPTS: Final = 3
RETRY_DELAY_S: Final = 0.1
LONGEST_RETRY_AFTER_S: Final = 2.0
_BY_NAME: Final = Situation()


class Governance(Protocol):
    """What the Governor last said, as far as a request needs it."""

    @property
    def dial(self) -> float:
        """The quality dial in [0,1]."""

    def admit(self, tenant: str) -> None:
        """Takes one request from the tenant's rate, or raises MeshError RATE_LIMITED."""

    def tenant_label(self, tenant: str) -> str:
        """The tenant as a bounded metric label."""


class Keeper(Protocol):
    """Where entries of requests that have ended go."""

    def add(self, entry: Entry) -> None:
        """Takes an entry; never waits."""


class QualityGate(Protocol):
    """Estimates how likely a small and a large model are good enough."""

    def estimate(self, prompt: str) -> Estimate:
        """The estimate for a prompt."""


Recalling = Callable[[Work, Decision, Policy, Mapping[str, ModelState]], Decision]
"""Has the courier shown worked examples where a policy says so: the decision with what they cost, see recall.Recall."""


def no_recall(work: Work, decision: Decision, policy: Policy, states: Mapping[str, ModelState]) -> Decision:
    """Nothing is shown."""
    return decision


class Completions:
    """The core of the Router. `clock` is monotonic, in seconds."""

    def __init__(
        self,
        *,
        fleet: Fleet,
        upstream: Upstream,
        budgets: BudgetBook,
        recorder: Keeper,
        entry: Callable[[Work], Entry],
        governance: Governance,
        metrics: RouterMetrics,
        clock: Callable[[], float] = time.monotonic,
        gate: QualityGate | None = None,
        flips: FlipRate | None = None,
        explore: float = 0.0,
        rng: random.Random | None = None,
        skill: Callable[[str], Skill] = lambda _: no_skill,
        known: Known = nothing_known,
        recall: Recalling = no_recall,
    ) -> None:
        self.fleet = fleet
        self._gate, self._flips = gate, flips or FlipRate()
        self._explore, self._rng = explore, rng
        self._skill, self._known, self._recall = skill, known, recall
        self._taxonomy: tuple[Mapping[str, tuple[str, ...]], Taxonomy] = ({}, Taxonomy())
        self._upstream, self._budgets, self._recorder, self._entry = upstream, budgets, recorder, entry
        self._governance, self._metrics, self.clock = governance, metrics, clock

    def decide(self, request: Request) -> Work:
        """Decides and records it; nothing is called, and nothing explored."""
        work = self._begin(request)
        try:
            self._decide(work, explore=0.0)
        except MeshError as error:
            self._end(work, error.reason)
            raise
        self._end(work, "OK")
        return work

    async def plain(self, request: Request) -> Answer:
        """A whole answer; MeshError or UpstreamRefused if there is none."""
        work = self._begin(request)
        try:
            decision = self._admitted(work)
            if decision.strategy == SINGLE:
                answer: Answer = await self._first_that_answers(work, decision.options, self._plain_call)
                return answer
            return await self.by_strategy(work, decision, None)
        except BaseException as error:
            self.fail(work, error)
            raise

    async def stream(self, request: Request) -> "OpenStream | StrategyStream":
        """A stream whose first event has come, or the steps of a strategy; MeshError or UpstreamRefused otherwise."""
        work = self._begin(request)
        try:
            decision = self._admitted(work)
            if decision.strategy != SINGLE:
                return StrategyStream(self, work, decision)
            stream: OpenStream = await self._first_that_answers(work, decision.options, self._open_stream)
            return stream
        except BaseException as error:
            self.fail(work, error)
            raise

    async def by_strategy(self, work: Work, decision: Decision, audience: Audience | None) -> Answer:
        """Answers by several calls; where they fail, by one, if the request was for `auto`.

        `audience`: the client, where it streams. Once it has words of the answer nothing takes its place.
        """
        option = decision.chosen
        singles = [o for o in decision.options if o.strategy == SINGLE]
        strategy = option.strategy
        try:
            work.option = option = await self._funded(work, option)
            return await self._run_strategy(work, option, audience)
        except BrokenOff:
            raise
        except (MeshError, RoleFailed) as error:
            if isinstance(error, MeshError) and (work.request.refuse_on_budget or error.reason == "DEADLINE_PASSED"):
                raise
            why = f"{strategy} by {option.model.alias} failed: {error}"
            work.hold.settle(work.record.cost_micros)
            self._time_left(work.request)
            if not singles:
                if isinstance(error, MeshError):
                    raise
                raise MeshError("UPSTREAM_FAILED", why) from error
            work.record.degraded.append(f"{why}; one call answered instead")
            return await self._by_one_call(work, singles, audience)

    async def _by_one_call(self, work: Work, singles: Sequence[Option], audience: Audience | None) -> Answer:
        if audience is None:
            answer: Answer = await self._first_that_answers(work, singles, self._plain_call)
            return answer
        stream: OpenStream = await self._first_that_answers(work, singles, self._open_stream)
        text = await relayed(stream, audience)
        return composed(work, text, stream.chat.model, stream.chat.finish_reason)

    async def _run_strategy(self, work: Work, option: Option, audience: Audience | None) -> Answer:
        caller = StrategyCaller(self, work, option, audience)
        catalogue = self.fleet.catalogue
        judging = next((m for m in map(catalogue.get, ("judge", "arbiter", MASTER)) if m is not None), None)
        task = Task(
            work.request.messages, option.model, option.team, work.request.hints.subtasks,
            None if judging is None else Judge(judging, caller, self._flips),
        )  # fmt: skip
        outcome = await BY_NAME[option.strategy](task, caller)
        record = work.record
        record.degraded += outcome.degraded
        record.judged = outcome.judged
        work.text, work.agreement, work.alternatives = outcome.text, outcome.agreement, outcome.alternatives
        work.hold.settle(record.cost_micros)
        self._end(work, "OK")
        named = [c.model for c in record.calls if c.alias == outcome.alias and not c.error]
        return composed(work, outcome.text, named[-1] if named else outcome.alias, outcome.finish_reason)

    async def piece(self, work: Work, part: Work, model: Model) -> dict[str, Any]:
        """One call of a strategy: its parsed answer. What it cost is booked and added to the record of `work`."""
        parsed: dict[str, Any] = await self._piece(work, part, model, self._piece_call)
        return parsed

    async def open_piece(self, work: Work, part: Work, model: Model) -> "OpenStream":
        """One call of a strategy whose words are the answer: a stream. Its cost is booked when it is closed."""
        stream: OpenStream = await self._piece(work, part, model, self._open_stream)
        return stream

    async def _piece(self, work: Work, part: Work, model: Model, call: Callable[..., Any]) -> Any:
        try:
            return await self._try_endpoints(part, Option(model, 0), call, alternatives=False)
        except asyncio.CancelledError:
            prompt_only = Tokens(part.request.prompt.expected, 0, estimated=True)
            mine = [
                c for c in work.record.calls if c.role == part.role and c.alias == model.alias and not c.usage.prompt
            ]
            if mine:
                self._add_piece(part, model, mine[-1], prompt_only)
            raise

    async def _piece_call(
        self, part: Work, model: Model, endpoint: Endpoint, body: bytes, entry: Call, patient: bool
    ) -> dict[str, Any]:
        _, parsed = await self._read_answer(part, model, endpoint, body, entry, patient)
        self._add_piece(part, model, entry, tokens_of(parsed.get("usage"), part.request, answer_bytes(parsed)))
        return parsed

    def _add_piece(self, part: Work, model: Model, entry: Call, tokens: Tokens) -> None:
        record, first = part.record, not part.record.usage.prompt
        entry.usage, entry.cost_micros = tokens, model.cost_micros(tokens.prompt, tokens.completion)
        record.usage += tokens
        record.cost_micros += entry.cost_micros
        master = self.fleet.catalogue.get(MASTER)
        saved_against = 0
        if first and master is not None:  # one call of master is what the whole strategy is compared with
            saved_against = record.master_cost_micros = master.cost_micros(tokens.prompt, tokens.completion)
        self.fleet.note(model.alias, latency_s=entry.latency_s, cost=0, upper=0)
        self._budgets.book(
            record.tenant, model.alias, cost_micros=entry.cost_micros, prompt_tokens=tokens.prompt,
            completion_tokens=tokens.completion,
            master_cost=saved_against if master is not None else entry.cost_micros,
        )  # fmt: skip

    def finish_stream(self, stream: "OpenStream", outcome: str) -> None:
        """Accounts for a stream that has ended, whole or not. The second call does nothing."""
        work, call = stream.work, stream.call
        if work.ended:
            return
        tokens = tokens_of(stream.chat.usage, work.asked(call.alias), stream.chat.text_bytes)
        now = self.clock()
        call.latency_s = now - stream.called
        call.model = stream.chat.model or call.model
        call.error = "" if outcome == "OK" else stream.problem or outcome
        breaker = self.fleet.breaker(call.alias, stream.endpoint)
        if outcome == "UPSTREAM_FAILED":
            call.failed = True
            breaker.fail(call.error)
        else:
            breaker.succeed()
        if work.option is None:  # a call of a strategy, whose request goes on
            work.ended = True
            self._add_piece(work, stream.model, call, tokens)
            return
        self._account(work, call, tokens)
        work.text = "".join(stream.chat.texts)
        self._end(work, outcome)

    def _admitted(self, work: Work) -> Decision:
        self._governance.admit(work.request.tenant)
        return self._decide(work, explore=self._explore)

    def _begin(self, request: Request) -> Work:
        record = Record(
            request.request_id, request.created, request.tenant, request.session, request.surface,
            request.model or "auto", prompt_sha256=request.prompt_sha256, trace_id=request.traceparent[3:35],
        )  # fmt: skip
        return Work(request, record)

    def _decide(self, work: Work, *, explore: float) -> Decision:
        request, record = work.request, work.record
        catalogue = self.fleet.catalogue
        policy = policy_of(request.policy, request.tenant, catalogue)
        if not request.wants_auto and not request.hints.strategy and not policy.name:
            return self._decided(work, decide(request, self.fleet.state_of(request.alias), _BY_NAME))  # the hot path
        states = self.fleet.states()
        estimate = self._estimate(request)

        def situation(under: Policy, rate: float) -> Situation:
            return Situation(
                dial=self._governance.dial if under.dial is None else under.dial,
                pressure=self._budgets.pressure(request.tenant), explore=rate, estimate=estimate,
                allowed_models=under.models, allowed_strategies=under.strategies,
                max_cost_micros=under.max_cost_micros, skill=self._skill(request.tenant), known=self._known,
            )  # fmt: skip

        decision = decide(request, states, situation(policy, explore), self._rng)
        record.policy, record.propensity = policy.name, decision.propensity
        record.estimate = None if estimate is None else (estimate.weak, estimate.strong)
        if policy.shadow:
            try:
                other = decide(request, states, situation(catalogue.policies[policy.shadow], 0.0))
                record.shadow = Shadow(policy.shadow, other.strategy, other.chosen.model.alias, other.reason)
            except MeshError as error:
                record.shadow = Shadow(policy.shadow, "", "", f"refused: {error.message}")
        return self._decided(work, self._recall(work, decision, policy, states))

    def _decided(self, work: Work, decision: Decision) -> Decision:
        record = work.record
        record.strategy, record.chosen_model = decision.strategy, decision.chosen.model.alias
        record.domain, record.reason, record.candidates = decision.domain, decision.reason, decision.candidates
        record.degraded += decision.degraded
        work.decision = decision
        return decision

    def _estimate(self, request: Request) -> Estimate | None:
        """What the gate says, with the domain by the operator's own words where there are any."""
        if self._gate is None or not request.wants_auto:
            return None
        question = request.question
        estimate = self._gate.estimate(question)
        domains = self.fleet.catalogue.domains
        if not domains:
            return estimate
        if self._taxonomy[0] is not domains:
            self._taxonomy = (domains, Taxonomy(domains))
        return replace(estimate, domain=self._taxonomy[1].classify(question))

    async def _first_that_answers(self, work: Work, options: Sequence[Option], call: Callable[..., Any]) -> Any:
        """Tries the options in turn. Only a request for `auto` has more than one."""
        for i, option in enumerate(options):
            rest = options[i + 1 :]
            try:
                work.option = option = await self._funded(work, option)
            except MeshError as error:
                if not _next_is_cheaper(option, rest) or work.request.refuse_on_budget:
                    raise
                work.record.degraded.append(f"{option.model.alias} was passed over: {error.message}")
                continue
            try:
                return await self._try_endpoints(work, option, call, alternatives=bool(rest))
            except UpstreamRefused as error:
                work.hold.settle(0)
                if not rest or not too_long(error):
                    raise
                work.record.degraded.append(f"{option.model.alias} cannot hold so long a prompt")
            except MeshError as error:
                if error.reason == "DEADLINE_PASSED":
                    raise
                work.hold.settle(0)
                if not rest:
                    raise
                work.record.degraded.append(f"{option.model.alias} failed: {error.message}")
        raise MeshError("NO_MODEL_AVAILABLE", "; ".join(work.record.degraded) or "no model could answer")

    async def _funded(self, work: Work, option: Option) -> Option:
        """Sets the money for an option aside; without its examples where it reaches only for the request itself."""
        tenant, shown = work.request.tenant, work.shown_to(option.model.alias)
        try:
            work.hold = await self._budgets.hold(tenant, option.cost_micros)
        except MeshError as error:
            if shown is None or not shown.extra_micros:
                raise
            plain = replace(option, cost_micros=option.cost_micros - shown.extra_micros)
            work.hold = await self._budgets.hold(tenant, plain.cost_micros)
            work.shown, work.record.examples, work.record.reason = None, (), shown.plain_reason
            work.record.degraded.append(f"no examples were shown: {error.message}")
            return plain
        return option

    async def _try_endpoints(self, work: Work, option: Option, call: Callable[..., Any], *, alternatives: bool) -> Any:
        model = option.model
        choice = Choice("", self.fleet.in_turn(model))
        if choice.endpoints and model.role:
            choice = self.fleet.adapters.choose(model, work.request, choice.endpoints)
            if choice.note:
                work.record.degraded.append(choice.note)
        endpoints = choice.endpoints
        if not endpoints:
            wait = max(0.1, self.fleet.resting_s(model))
            message = f"every endpoint of {model.alias} rests after failures ({self._last_error(model)})"
            raise MeshError("UPSTREAM_FAILED", message, retry_after_s=wait)
        cap = model.max_output_tokens if work.hold.binds and work.request.max_tokens is None else None
        template = work.asked(model.alias).body.template(cap=cap)
        for attempt in range(MAX_ATTEMPTS):
            endpoint = endpoints[attempt % len(endpoints)]
            patient = not alternatives and len(endpoints) == 1
            try:
                body = template.fill(self.fleet.adapters.name_at(model, endpoint, choice.adapter))
                return await self._attempt(work, model, endpoint, choice, body, call, patient=patient)
            except AttemptFailed as failure:
                failed = failure
                last = attempt + 1 == MAX_ATTEMPTS or (alternatives and attempt + 1 >= len(endpoints))
                if last or (failure.retry_after_s > LONGEST_RETRY_AFTER_S and len(endpoints) == 1):
                    break
                await self._pause(work.request, failure, attempt, endpoints)
        message = f"{model.alias} failed: {failed}"
        raise MeshError("UPSTREAM_FAILED", message, retry_after_s=failed.retry_after_s or None)

    async def _pause(
        self, request: Request, failure: AttemptFailed, attempt: int, endpoints: Sequence[Endpoint]
    ) -> None:
        """Another endpoint is tried at once, the same one after a while."""
        if (attempt + 1) % len(endpoints) == 0:
            wait_s = max(failure.retry_after_s, RETRY_DELAY_S * 2**attempt)
            await asyncio.sleep(min(wait_s, max(0.0, request.deadline - self.clock())))

    def _time_left(self, request: Request) -> float:
        """Seconds to the deadline of a request; MeshError DEADLINE_PASSED if there are none."""
        left = request.deadline - self.clock()
        if left <= 0:
            raise MeshError("DEADLINE_PASSED", "the deadline passed before a model had answered")
        return left

    async def _attempt(
        self,
        work: Work,
        model: Model,
        endpoint: Endpoint,
        choice: Choice,
        body: bytes,
        call: Callable[..., Any],
        *,
        patient: bool,
    ) -> Any:
        breaker = self.fleet.breaker(model.alias, endpoint)
        entry = Call(
            model.alias, f"{endpoint.number}:{endpoint.host}", time.time(), role=work.role, model=endpoint.model,
            prompt_version=work.prompt_version, adapter=choice.adapter, adapter_role=model.role, unit=choice.unit,
        )  # fmt: skip
        shown = work.shown_to(model.alias)
        if shown is not None:
            entry.examples, entry.prompt_version = shown.ids, shown.prompt_version
            self._metrics.examples_shown.inc(len(shown.ids))
        work.record.calls.append(entry)
        called = self.clock()
        breaker.begin()
        try:
            return await call(work, model, endpoint, body, entry, patient)
        except AttemptFailed as failure:
            entry.error, entry.failed = str(failure), failure.endpoints_fault
            if failure.endpoints_fault:
                breaker.fail(entry.error)
            else:
                breaker.abandon()
            raise
        except UpstreamRefused as refused:
            breaker.succeed()
            entry.error = str(refused)
            raise
        except BaseException:
            breaker.abandon()
            entry.error = entry.error or "the client or the deadline ended the call"
            raise
        finally:
            if not entry.latency_s:
                entry.latency_s = self.clock() - called

    async def _plain_call(
        self, work: Work, model: Model, endpoint: Endpoint, body: bytes, entry: Call, patient: bool
    ) -> Answer:
        raw, parsed = await self._read_answer(work, model, endpoint, body, entry, patient)
        self._account(work, entry, tokens_of(parsed.get("usage"), work.asked(model.alias), answer_bytes(parsed)))
        work.text = first_text(parsed)
        self._end(work, "OK")
        return Answer(work, raw, parsed)

    async def _read_answer(
        self, work: Work, model: Model, endpoint: Endpoint, body: bytes, entry: Call, patient: bool
    ) -> tuple[bytes, dict[str, Any]]:
        limits = model.timeouts
        called = self.clock()
        left_s = self._time_left(work.request)
        answer_s = min(limits.total_s if patient else limits.first_token_s, left_s)
        try:
            response = await self._post(work.request, model, endpoint, body, answer_s)
            try:
                entry.http_status = response.status
                raw = await response.read(MAX_ANSWER_BYTES, within_s=min(limits.total_s, left_s))
            finally:
                response.close()
        except UpstreamError as error:
            self._time_left(work.request)
            raise AttemptFailed(str(error)) from error
        parsed = checked_answer(response, raw)
        self.fleet.breaker(model.alias, endpoint).succeed()
        entry.latency_s = self.clock() - called
        entry.model = text_of(parsed.get("model")) or entry.model
        entry.adapter = answered_with(entry.adapter, response.header("X-Adapter-Id"))
        return raw, parsed

    async def _open_stream(
        self, work: Work, model: Model, endpoint: Endpoint, body: bytes, entry: Call, patient: bool
    ) -> "OpenStream":
        limits = model.timeouts
        called = self.clock()
        left_s = min(limits.first_token_s, self._time_left(work.request))
        response: UpstreamResponse | None = None
        try:
            response = await self._post(work.request, model, endpoint, body, left_s)
            entry.http_status = response.status
            left_s = max(0.0, called + left_s - self.clock())
            if response.status != 200 or "text/event-stream" not in response.header("Content-Type"):
                raw = await response.read(MAX_ANSWER_BYTES, within_s=left_s)
                raise_for(response, raw, "it sent no event stream")
            stream = OpenStream(self, work, model, endpoint, entry, response, called)
            await stream.read_first(within_s=left_s)
        except (UpstreamError, BrokenStream) as error:
            _close(response)
            self._time_left(work.request)
            raise AttemptFailed(str(error)) from error
        except BaseException:
            _close(response)
            raise
        entry.adapter = answered_with(entry.adapter, response.header("X-Adapter-Id"))
        now = self.clock()
        entry.first_token_s = now - called
        work.record.first_token_s = now - work.request.arrived
        return stream

    async def _post(
        self, request: Request, model: Model, endpoint: Endpoint, body: bytes, answer_s: float
    ) -> UpstreamResponse:
        headers = {
            "Content-Type": "application/json",
            "Accept": "text/event-stream" if request.stream else "application/json",
            "Accept-Encoding": "identity",
            "User-Agent": "hivemind",
            "X-Request-Id": request.request_id,
        }
        if endpoint.api_key:
            headers["Authorization"] = f"Bearer {endpoint.api_key}"
        if request.traceparent:
            headers["traceparent"] = request.traceparent
            if request.tracestate:
                headers["tracestate"] = request.tracestate
        connect_s = model.timeouts.connect_s
        return await self._upstream.post(endpoint, PATH, body, headers, connect_s=connect_s, answer_s=answer_s)

    def _account(self, work: Work, call: Call, tokens: Tokens) -> None:
        """Settles a call that was answered, in whole or in part."""
        option = work.option
        assert option is not None
        model, record, request = option.model, work.record, work.request
        call.usage, call.cost_micros = tokens, model.cost_micros(tokens.prompt, tokens.completion)
        work.hold.settle(call.cost_micros)
        first = not record.usage.prompt  # a strategy that failed before may have spent something
        record.usage += tokens
        record.cost_micros += call.cost_micros
        master = self.fleet.catalogue.get(MASTER)
        saved_against = 0
        if master is not None and first:
            saved_against = record.master_cost_micros = master.cost_micros(tokens.prompt, tokens.completion)
        self.fleet.note(model.alias, latency_s=call.latency_s, cost=call.cost_micros, upper=option.cost_micros)
        self._budgets.book(
            request.tenant, model.alias, cost_micros=call.cost_micros, prompt_tokens=tokens.prompt,
            completion_tokens=tokens.completion,
            master_cost=saved_against if master is not None else call.cost_micros,
        )  # fmt: skip
        if record.chosen_model != model.alias:
            record.chosen_model = model.alias

    def fail(self, work: Work, error: BaseException) -> None:
        """Accounts for a request that ends without an answer, unless that is done."""
        if work.ended:
            return
        outcome = _outcome_of(error)
        if outcome in ("CANCELLED", "DEADLINE_PASSED") and work.option is not None and work.record.calls:
            # the model server has read the prompt and will ask for its price
            asked = work.asked(work.option.model.alias)
            prompt_only = Tokens(asked.prompt.expected, 0, estimated=True)
            if work.option.strategy == SINGLE:
                self._account(work, work.record.calls[-1], prompt_only)
        work.hold.settle(work.record.cost_micros)
        self._end(work, outcome)

    def _end(self, work: Work, outcome: str) -> None:
        if work.ended:
            return
        work.ended = True
        record = work.record
        record.outcome = outcome
        record.latency_s = self.clock() - work.request.arrived
        self._metrics.observe(record, tenant_label=self._governance.tenant_label(record.tenant))
        self._recorder.add(self._entry(work))

    def _last_error(self, model: Model) -> str:
        errors = (self.fleet.breaker(model.alias, e).last_error for e in model.endpoints)
        return next((e for e in errors if e), "unknown")


def policy_of(name: str, tenant: str, catalogue: Catalogue) -> Policy:
    """The policy that a request names, else its tenant's, else an empty one; MeshError for an unknown name."""
    named = name or catalogue.tenant_policies.get(tenant, "")
    if not named:
        return Policy()
    found = catalogue.policies.get(named)
    if found is None:
        known = ", ".join(catalogue.policies) or "none is configured"
        text = f"{named!r} is no policy of this mesh; known: {known}"
        raise invalid_field("x-hivemind-policy", text, reason="UNKNOWN_POLICY")
    return found


def _next_is_cheaper(option: Option, rest: Sequence[Option]) -> bool:
    return any(o.cost_micros < option.cost_micros for o in rest)


def _outcome_of(error: BaseException) -> str:
    if isinstance(error, MeshError):
        return error.reason
    if isinstance(error, UpstreamRefused):
        return "UPSTREAM_REFUSED"
    return "CANCELLED" if isinstance(error, asyncio.CancelledError) else "INTERNAL_ERROR"


def _close(response: UpstreamResponse | None) -> None:
    if response is not None:
        response.close()
