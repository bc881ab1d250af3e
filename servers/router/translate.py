"""Between the messages of router.proto and the Router's core."""

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any, Final

import orjson

from hivemind.servers.common.catalogue import EVERY_ALIAS, Model
from hivemind.servers.common.context import DEFAULT_TENANT, CallContext, is_id
from hivemind.servers.common.errors import invalid_field
from hivemind.servers.common.tokens import prompt_size
from hivemind.servers.common.translate import duration, timestamp
from hivemind.servers.router.feedback import Feedback
from hivemind.servers.router.fleet import Fleet
from hivemind.servers.router.json_splice import top_level
from hivemind.servers.router.open_stream import OpenStream
from hivemind.servers.router.openai_request import check_hints
from hivemind.servers.router.opinions import Opinion
from hivemind.servers.router.records import Call, Candidate, Judged, Record, Tokens, WorkedExample
from hivemind.servers.router.request import Body, Hints, Request
from hivemind.servers.router.sse import first_text, text_of
from hivemind.servers.router.work import Work
from hivemind.v1 import common_pb2, router_pb2

_ROLES: Final = ("system", "developer", "user", "assistant")
_STOPS_MAX: Final = 4
_DEADLINE_S: Final = 60.0
_SAMPLE_MAX: Final = 100


def request_of(
    message: router_pb2.CompleteRequest, call: CallContext, surface: str, now: float, time_left: float | None
) -> Request:
    """The core's request; MeshError with the field that is wrong. `now` is monotonic seconds."""
    _check(message)
    raw = _body(message, stream=surface == "STREAM_COMPLETE")
    tenant = call.tenant or message.tenant or DEFAULT_TENANT
    if not is_id(tenant):
        raise invalid_field("tenant", "must match [a-z0-9._-]+ and be at most 128 characters")
    return Request(
        request_id=call.request_id,
        tenant=tenant,
        session=message.session,
        surface=surface,
        model=message.model,
        body=Body(raw, top_level(raw)),
        prompt=prompt_size(len(raw), len(message.messages), 0),
        prompt_sha256=hashlib.sha256(orjson.dumps(_messages(message))).hexdigest(),
        arrived=now,
        created=time.time(),
        deadline=now + (_DEADLINE_S if time_left is None else time_left),
        messages=_messages(message),
        max_tokens=message.max_tokens or None,
        stream=surface == "STREAM_COMPLETE",
        refuse_on_budget=message.on_budget == router_pb2.CompleteRequest.REFUSE,
        hints=_hints(message.hints),
        traceparent=call.traceparent,
        tracestate=call.tracestate,
        policy=call.policy,
        refine=message.refine,
    )


def response_of(work: Work, parsed: dict[str, Any]) -> router_pb2.CompleteResponse:
    """The answer of a plain completion."""
    choices = parsed["choices"]
    choice = choices[0] if choices and isinstance(choices[0], dict) else {}
    response = _response(work, text_of(parsed.get("model")), first_text(parsed))
    response.finish_reason = text_of(choice.get("finish_reason"))
    return response


def streamed_response_of(stream: OpenStream, text: str) -> router_pb2.CompleteResponse:
    """The end of a streamed completion: all that a plain one would have answered."""
    response = _response(stream.work, stream.chat.model, text)
    response.finish_reason = stream.chat.finish_reason
    return response


def decision_of(record: Record) -> router_pb2.DecideResponse:
    """A decision that called nothing."""
    return router_pb2.DecideResponse(
        request_id=record.request_id,
        strategy=record.strategy,
        chosen_model=record.chosen_model,
        domain=record.domain,
        reason=record.reason,
        candidates=map(_candidate, record.candidates),
        degraded=record.degraded,
        examples=map(_worked_example, record.examples),
    )


def models_of(fleet: Fleet) -> router_pb2.ListModelsResponse:
    """`auto`, the aliases with an endpoint, then the aliases that the mesh would have a use for."""
    answer = router_pb2.ListModelsResponse()
    auto = [m for m in fleet.catalogue.models.values() if m.auto]
    answer.models.add(id="auto", alias="auto", health=router_pb2.Model.HEALTHY if auto else router_pb2.Model.UNHEALTHY)
    answer.models[0].note = "chooses among " + ", ".join(m.alias for m in auto)
    for model in fleet.catalogue.models.values():
        answer.models.append(_model(fleet, model))
    for model in fleet.catalogue.models.values():
        answer.models.extend(_with_adapters(fleet, model))
    for alias in EVERY_ALIAS:
        if alias not in fleet.catalogue.models:
            note = f"add [models.{alias}] to hivemind.toml"
            answer.models.add(id=alias, alias=alias, health=router_pb2.Model.NOT_CONFIGURED, note=note)
    return answer


def record_of(record: Record, opinions: Sequence[Feedback]) -> router_pb2.RequestRecord:
    """A record as the contract has it."""
    message = router_pb2.RequestRecord(
        request_id=record.request_id,
        create_time=timestamp(record.created),
        tenant=record.tenant,
        session=record.session,
        surface=router_pb2.RequestRecord.Surface.Value(record.surface),
        requested_model=record.requested_model,
        decision=_decision(record),
        calls=map(_call, record.calls),
        usage=_usage(record.usage),
        cost_micros=record.cost_micros,
        latency=duration(record.latency_s),
        outcome=record.outcome,
        degraded=record.degraded,
        prompt_sha256=record.prompt_sha256,
        trace_id=record.trace_id,
        policy=record.policy,
        feedback=map(feedback_message, opinions),
        nomination=record.nomination,
        judgements=map(_judgement, record.judged),
    )
    if record.shadow is not None:
        message.shadow.CopyFrom(router_pb2.ShadowDecision(**asdict(record.shadow)))
    if record.first_token_s is not None:
        message.first_token_latency.CopyFrom(duration(record.first_token_s))
    if record.master_cost_micros is not None:
        message.master_cost_micros = record.master_cost_micros
    return message


def feedback_of(request: router_pb2.SubmitFeedbackRequest) -> Feedback:
    """The opinion in a request; its kind is empty where there is none."""
    kind = request.WhichOneof("opinion") or ""
    return Feedback(kind, getattr(request, kind) if kind else "", time.time())


def feedback_message(feedback: Feedback) -> router_pb2.Feedback:
    """An opinion as the contract has it."""
    message = router_pb2.Feedback(create_time=timestamp(feedback.created))
    setattr(message, feedback.kind, feedback.value)
    return message


def opinion_of(opinion: Opinion) -> router_pb2.Opinion:
    """An opinion as the contract has it."""
    return router_pb2.Opinion(
        time=timestamp(opinion.created),
        request_id=opinion.request_id,
        tenant=opinion.tenant,
        domain=opinion.domain,
        source=router_pb2.Opinion.Source.Value(opinion.source),
        alias=opinion.alias,
        adapter=opinion.adapter,
        score=opinion.score,
    )


def wanted_sample(request: router_pb2.NominateRequestsRequest) -> tuple[int, float]:
    """How many answers to nominate, and their value; MeshError INVALID_FIELD."""
    if request.count < 0:
        raise invalid_field("count", "must not be negative")
    if not 0 <= request.value <= 1:
        raise invalid_field("value", "must be from 0 to 1")
    if request.fencing_token < 0:
        raise invalid_field("fencing_token", "must not be negative")
    return min(request.count, _SAMPLE_MAX), request.value


def _check(message: router_pb2.CompleteRequest) -> None:
    for i, turn in enumerate(message.messages):
        if turn.role not in _ROLES:
            raise invalid_field(f"messages[{i}].role", f"must be one of {', '.join(_ROLES)}")
    if message.max_tokens < 0:
        raise invalid_field("max_tokens", "must not be negative")
    if message.HasField("temperature") and not 0 <= message.temperature <= 2:
        raise invalid_field("temperature", "must be a number from 0 to 2")
    if message.HasField("top_p") and not 0 < message.top_p <= 1:
        raise invalid_field("top_p", "must be a number above 0 and at most 1")
    if len(message.stop) > _STOPS_MAX:
        raise invalid_field("stop", f"must hold at most {_STOPS_MAX} texts")


def _messages(message: router_pb2.CompleteRequest) -> list[dict[str, str]]:
    turns = []
    for turn in message.messages:
        item = {"role": turn.role, "content": turn.content}
        if turn.name:
            item["name"] = turn.name
        turns.append(item)
    return turns


def _body(message: router_pb2.CompleteRequest, *, stream: bool) -> bytes:
    body: dict[str, Any] = {"model": "", "messages": _messages(message)}
    if message.max_tokens:
        body["max_tokens"] = message.max_tokens
    for name in ("temperature", "top_p", "seed"):
        if message.HasField(name):
            body[name] = getattr(message, name)
    if message.stop:
        body["stop"] = list(message.stop)
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return orjson.dumps(body)


def _hints(message: common_pb2.Hints) -> Hints:
    hints = Hints(
        strategy=message.strategy,
        max_cost_micros=message.max_cost_micros if message.HasField("max_cost_micros") else None,
        max_latency_s=message.max_latency.ToNanoseconds() / 1e9 if message.HasField("max_latency") else None,
        difficulty=message.difficulty if message.HasField("difficulty") else None,
        domain=message.domain,
        quality_dial=message.quality_dial if message.HasField("quality_dial") else None,
        subtasks=tuple(message.subtasks),
    )
    return check_hints(hints, "hints.")


def _response(work: Work, model: str, text: str) -> router_pb2.CompleteResponse:
    record, refined = work.record, work.refined
    return router_pb2.CompleteResponse(
        request_id=record.request_id,
        message=common_pb2.ChatMessage(role="assistant", content=text),
        strategy=record.strategy,
        chosen_model=record.chosen_model,
        model=model,
        adapter=record.calls[-1].adapter if record.calls else "",
        usage=_usage(record.usage),
        cost_micros=record.cost_micros,
        latency=duration(record.latency_s),
        reason=record.reason,
        degraded=record.degraded,
        refined_answer=refined.answer if refined is not None else "",
        platinum_id=refined.platinum_id if refined is not None else "",
    )


def _model(fleet: Fleet, model: Model) -> router_pb2.Model:
    breakers = [fleet.breaker(model.alias, e) for e in model.endpoints]
    failing = [b for b in breakers if b.failures]
    health = router_pb2.Model.HEALTHY
    if failing:
        health = router_pb2.Model.UNHEALTHY if len(failing) == len(breakers) else router_pb2.Model.DEGRADED
    return router_pb2.Model(
        id=model.alias,
        alias=model.alias,
        upstream_models=sorted({e.model for e in model.endpoints}),
        input_price_micros=round(model.input_price * 1_000_000),
        output_price_micros=round(model.output_price * 1_000_000),
        context_tokens=model.context_tokens,
        max_output_tokens=model.max_output_tokens,
        health=health,
        note=failing[0].last_error if failing else "",
        endpoints=len(model.endpoints),
    )


def _with_adapters(fleet: Fleet, model: Model) -> Iterator[router_pb2.Model]:
    """The model with each adapter of its role."""
    role = fleet.adapters.role(model.role)
    if role is None:
        return
    for adapter in role.registered:
        message = _model(fleet, model)
        message.id, message.note = f"{model.alias}:{adapter}", role.standing(adapter)
        yield message


def _decision(record: Record) -> common_pb2.RoutingDecision:
    return common_pb2.RoutingDecision(
        strategy=record.strategy,
        chosen_model=record.chosen_model,
        domain=record.domain,
        reason=record.reason,
        candidates=map(_candidate, record.candidates),
        degraded=record.degraded,
        propensity=record.propensity,
        examples=map(_worked_example, record.examples),
    )


def _worked_example(example: WorkedExample) -> common_pb2.WorkedExample:
    return common_pb2.WorkedExample(platinum_id=example.platinum_id, similarity=example.similarity)


def _candidate(candidate: Candidate) -> common_pb2.Candidate:
    message = common_pb2.Candidate(
        strategy=candidate.strategy,
        chosen_model=candidate.alias,
        cost_micros=candidate.cost_micros,
        rejected_because=candidate.rejected_because,
    )
    if candidate.quality is not None:
        message.quality = candidate.quality
    if candidate.latency_s is not None:
        message.latency.CopyFrom(duration(candidate.latency_s))
    return message


def _judgement(judged: Judged) -> router_pb2.Judgement:
    return router_pb2.Judgement(
        alias=judged.alias, points=judged.points, points_against_others=judged.against_others, score=judged.score
    )


def _call(call: Call) -> router_pb2.ModelCall:
    message = router_pb2.ModelCall(
        alias=call.alias,
        role=call.role,
        endpoint=call.endpoint,
        model=call.model,
        adapter=call.adapter,
        start_time=timestamp(call.start),
        latency=duration(call.latency_s),
        http_status=call.http_status,
        usage=_usage(call.usage),
        cost_micros=call.cost_micros,
        error=call.error,
        prompt_version=call.prompt_version,
        example_ids=call.examples,
    )
    if call.first_token_s is not None:
        message.first_token_latency.CopyFrom(duration(call.first_token_s))
    return message


def _usage(tokens: Tokens) -> common_pb2.Usage:
    return common_pb2.Usage(
        prompt_tokens=tokens.prompt,
        completion_tokens=tokens.completion,
        total_tokens=tokens.prompt + tokens.completion,
        estimated=tokens.estimated,
    )
