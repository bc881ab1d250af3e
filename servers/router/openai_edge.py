"""The OpenAI-compatible HTTP surface over the same core as the gRPC service.

It hands bytes on in both directions. A request changes only as Body.template says; an answer gets the `hivemind`
object, a stream one more chunk before `[DONE]`.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import aclosing
from typing import Any, Final

import orjson
import structlog

from hivemind.servers.common.context import (
    DEFAULT_TENANT,
    CallContext,
    current_call,
    is_id,
    sane_request_id,
    sane_traceparent,
)
from hivemind.servers.common.errors import MeshError, Violation, invalid_field
from hivemind.servers.common.interceptors import CallPolicy, check_key, overloaded
from hivemind.servers.router.answers import about, error_event, headers, openai_error, whole_headers
from hivemind.servers.router.arbiter_client import ArbiterClient
from hivemind.servers.router.completion import Completions
from hivemind.servers.router.edge_http import HttpReply, HttpRequest
from hivemind.servers.router.json_splice import append_member
from hivemind.servers.router.metrics import RouterMetrics
from hivemind.servers.router.model_answers import too_long
from hivemind.servers.router.open_stream import OpenStream
from hivemind.servers.router.openai_request import ChatRequest, read_chat_request
from hivemind.servers.router.request import Request
from hivemind.servers.router.sse import error_text, first_text, is_usage_only, text_of
from hivemind.servers.router.strategy_calls import Delta, Progress, StrategyStream, completion_id
from hivemind.servers.router.work import Answer, UpstreamRefused, Work

_log = structlog.get_logger()

ReadinessProbe = Callable[[], tuple[bool, str]]

_JSON: Final = (b"content-type", b"application/json")
_EVENTS: Final = (b"content-type", b"text/event-stream; charset=utf-8")
_NO_CACHE: Final = (b"cache-control", b"no-cache")
_DONE: Final = b"data: [DONE]\n\n"


class OpenAIEdge:
    """What EdgeServer serves. `clock` is monotonic, in seconds. Make it inside the running loop."""

    def __init__(
        self,
        completions: Completions,
        arbiter: ArbiterClient,
        *,
        policy: CallPolicy,
        metrics: RouterMetrics,
        ready: ReadinessProbe,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._arbiter = arbiter
        self._completions, self._policy = completions, policy
        self._metrics, self._ready, self._clock = metrics, ready, clock
        self._in_flight, self._loop = 0, asyncio.get_running_loop()

    async def serve(self, asked: HttpRequest, reply: HttpReply) -> None:
        """One HTTP request."""
        path = asked.path
        if path == "/readyz":
            ready, detail = self._ready()
            _answer_json(reply, 200 if ready else 503, {"ready": ready, "detail": detail})
            return
        call = _call_context(asked.headers)
        current_call.set(call)
        try:
            if self._policy.api_key is not None:
                check_key(asked.headers, self._policy.api_key)
            if path == "/v1/chat/completions" and asked.method == "POST":
                await self._chat(call, asked, reply)
            elif path == "/v1/models" and asked.method == "GET":
                _answer_json(reply, 200, self._models(), call.request_id)
            else:
                raise MeshError("UNKNOWN_METHOD", f"{asked.method} {path} does not exist here")
        except MeshError as error:
            _answer_error(reply, error, call.request_id)
        except UpstreamRefused as refused:
            _answer_refusal(reply, refused, call.request_id)
        except Exception:
            _log.exception("unexpected_error", path=path)
            unexpected = MeshError("INTERNAL_ERROR", "an unexpected error; the request id finds it in the server's log")
            _answer_error(reply, unexpected, call.request_id)

    async def _chat(self, call: CallContext, asked: HttpRequest, reply: HttpReply) -> None:
        if self._in_flight >= self._policy.max_in_flight:
            self._metrics.shed.inc()
            raise overloaded()
        self._in_flight += 1
        self._metrics.in_flight.set(self._in_flight)
        try:
            arrived, created = self._clock(), time.time()
            if asked.body is None:
                raise MeshError("REQUEST_TOO_LARGE", "the body is larger than this server takes")
            chat = read_chat_request(asked.body)
            request = self._request(call, chat, arrived, created)
            with _ClientWatch(reply, self._loop) as client:
                if chat.stream:
                    await self._stream(request, reply, client, withhold_usage=chat.withhold_usage)
                else:
                    await self._plain(request, reply, client)
        finally:
            self._in_flight -= 1
            self._metrics.in_flight.set(self._in_flight)

    async def _plain(self, request: Request, reply: HttpReply, client: "_ClientWatch") -> None:
        answer = await self._completions.plain(request)
        await self._arbiter.refine(answer.work)
        record = answer.work.record
        model = text_of(answer.parsed.get("model"))
        body = append_member(answer.raw, "hivemind", orjson.dumps(about(answer.work, model)))
        client.disarm()
        reply.whole(200, [_JSON, *whole_headers(record, model)], body)

    async def _stream(
        self, request: Request, reply: HttpReply, client: "_ClientWatch", *, withhold_usage: bool
    ) -> None:
        stream = await self._completions.stream(request)
        if isinstance(stream, StrategyStream):
            await self._relay_strategy(stream, reply, client, withhold_usage=withhold_usage)
            return
        outcome = "CANCELLED"
        try:
            reply.start(200, [_EVENTS, _NO_CACHE, *headers(stream.work.record)])
            await _relay(stream, reply, withhold_usage=withhold_usage)
            outcome = "OK"
            self._completions.finish_stream(stream, outcome)  # the last chunk tells the sums
            await self._arbiter.refine(stream.work)
            last = _last_chunk(stream) + _DONE
            client.disarm()
        except MeshError as error:
            outcome = error.reason
            last = error_event(error, request.request_id)
            client.disarm()
        finally:
            if outcome == "CANCELLED":
                await stream.close(outcome)
        reply.end(last)
        await stream.close(outcome)

    async def _relay_strategy(
        self, stream: StrategyStream, reply: HttpReply, client: "_ClientWatch", *, withhold_usage: bool
    ) -> None:
        """Comments while a strategy works, then its answer as chunks. An error after the first byte is told in band."""
        record, spoken = stream.work.record, False
        reply.start(200, [_EVENTS, _NO_CACHE, *headers(record)])
        last = b""
        try:
            async with aclosing(stream.events()) as events:
                async for event in events:
                    if isinstance(event, Progress):
                        note = " ".join(f"{event.role}: {event.note}".split())
                        await reply.write(f": {note}\n\n".encode())
                    elif isinstance(event, Delta):
                        await reply.write(_spoken(stream.work, event, first=not spoken))
                        spoken = True
                    elif event is None:
                        await reply.write(b": keep-alive\n\n")
                    else:
                        await self._arbiter.refine(event.work)
                        rest = _last_chunks(event, usage=not withhold_usage)
                        last = rest if spoken else _spoken(event.work, _whole(event), first=True) + rest
        except MeshError as error:
            last = error_event(error, record.request_id)
        client.disarm()
        reply.end(last)

    def _request(self, call: CallContext, chat: ChatRequest, arrived: float, created: float) -> Request:
        tenant = call.tenant or chat.tenant or DEFAULT_TENANT
        if not is_id(tenant):
            raise invalid_field("tenant", "must match [a-z0-9._-]+ and be at most 128 characters")
        return Request(
            request_id=call.request_id,
            tenant=tenant,
            session=chat.session,
            surface="OPENAI_STREAM" if chat.stream else "OPENAI",
            model=chat.model,
            body=chat.body,
            prompt=chat.prompt,
            prompt_sha256=chat.prompt_sha256,
            arrived=arrived,
            created=created,
            deadline=arrived + self._policy.deadline_s,
            max_tokens=chat.max_tokens,
            choices=chat.choices,
            messages=chat.messages,
            tools=chat.tools,
            single_only=chat.single_only or chat.images,
            images=chat.images,
            stream=chat.stream,
            refuse_on_budget=chat.refuse_on_budget,
            hints=chat.hints,
            traceparent=call.traceparent,
            tracestate=call.tracestate,
            policy=call.policy,
            refine=chat.refine,
        )

    def _models(self) -> dict[str, Any]:
        fleet = self._completions.fleet
        names = ["auto", *fleet.catalogue.models]
        for model in fleet.catalogue.models.values():
            names += [f"{model.alias}:{adapter}" for adapter in fleet.adapters.registered(model.role)]
        data = [{"id": name, "object": "model", "created": 0, "owned_by": "hivemind"} for name in names]
        return {"object": "list", "data": data}


class _ClientWatch:
    """Cancels the task at hand when the client leaves, which cancels the call to the model server."""

    __slots__ = ("_left", "_reply", "_task")

    def __init__(self, reply: HttpReply, loop: asyncio.AbstractEventLoop) -> None:
        self._reply, self._left = reply, False
        self._task = asyncio.current_task(loop)

    def __enter__(self) -> "_ClientWatch":
        self._reply.watch(self._on_lost)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        self.disarm()
        if self._left and kind is asyncio.CancelledError and self._task is not None:
            self._task.uncancel()
            return True  # there is nobody to answer
        return False

    def disarm(self) -> None:
        """The answer is ready: from here on the end of the connection is nothing special."""
        self._reply.watch(None)

    def _on_lost(self) -> None:
        if self._task is not None:
            self._left = True
            self._task.cancel()


async def _relay(stream: OpenStream, reply: HttpReply, *, withhold_usage: bool) -> None:
    """Hands the events on, one write for all that came together."""
    async for batch in stream.batches():
        if len(batch) == 1 and not (withhold_usage and batch[0][1] and is_usage_only(batch[0][1])):
            body = batch[0][0]
        else:
            body = b"".join(e for e, parsed in batch if not (withhold_usage and parsed and is_usage_only(parsed)))
        if body:
            await reply.write(body)


def _whole(answer: Answer) -> Delta:
    """An answer that comes all at once."""
    return Delta(first_text(answer.parsed), text_of(answer.parsed["model"]))


def _spoken(work: Work, words: Delta, *, first: bool) -> bytes:
    """Words of a strategy's answer as an event."""
    delta = {"role": "assistant", "content": words.text} if first else {"content": words.text}
    return _event(_head(work, words.model) | {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})


def _last_chunks(answer: Answer, *, usage: bool) -> bytes:
    """What comes after the words of a strategy's answer, `[DONE]` included."""
    parsed = answer.parsed
    head, reason = _head(answer.work, text_of(parsed["model"])), parsed["choices"][0]["finish_reason"]
    chunks = [_event(head | {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})]
    if usage:
        chunks.append(_event(head | {"choices": [], "usage": parsed["usage"]}))
    chunks.append(_event(head | {"choices": [], "hivemind": about(answer.work, head["model"])}))
    return b"".join(chunks) + _DONE


def _head(work: Work, model: str) -> dict[str, Any]:
    """The members that all chunks of a strategy's answer share."""
    return {
        "id": completion_id(work), "object": "chat.completion.chunk", "created": int(work.request.created),
        "model": model,
    }  # fmt: skip


def _event(chunk: Mapping[str, Any]) -> bytes:
    return b"data: %b\n\n" % orjson.dumps(chunk)


def _last_chunk(stream: OpenStream) -> bytes:
    """The chunk before `[DONE]` that says how the answer came about."""
    chat = stream.chat
    chunk = {
        "id": chat.completion_id,
        "object": "chat.completion.chunk",
        "created": chat.created,
        "model": chat.model,
        "choices": [],
        "hivemind": about(stream.work, chat.model),
    }
    return _event(chunk)


def _answer_json(
    reply: HttpReply, status: int, body: Any, request_id: str = "", retry_after: float | None = None
) -> None:
    _answer_bytes(reply, status, orjson.dumps(body), request_id, retry_after)


def _answer_bytes(
    reply: HttpReply, status: int, body: bytes, request_id: str, retry_after: float | None = None
) -> None:
    if reply.started:
        return  # too late to tell: the connection ends without the end of the answer
    lines = [_JSON]
    if request_id:
        lines.append((b"x-request-id", request_id.encode()))
    if retry_after is not None:
        lines.append((b"retry-after", b"%d" % max(1, round(retry_after))))
    reply.whole(status, lines, body)


def _answer_error(reply: HttpReply, error: MeshError, request_id: str) -> None:
    _answer_json(reply, error.outside.http, openai_error(error, request_id), request_id, error.retry_after_s)


def _answer_refusal(reply: HttpReply, refused: UpstreamRefused, request_id: str) -> None:
    """The model server's own words about the request; they are OpenAI's shape if it keeps to it."""
    try:
        body = orjson.loads(refused.body)
    except orjson.JSONDecodeError:
        body = {}
    shaped = isinstance(body, dict) and isinstance(body.get("error"), dict)
    if shaped and too_long(refused):
        error = MeshError(
            "CONTEXT_LENGTH_EXCEEDED", f"messages: {error_text(body)}", (Violation("messages", "too long"),)
        )
        _answer_json(reply, 400, openai_error(error, request_id), request_id)
    elif shaped:
        _answer_bytes(reply, refused.status, refused.body, request_id)
    else:
        error = MeshError("INVALID_FIELD", f"the model server refused the request with status {refused.status}")
        _answer_json(reply, refused.status, openai_error(error, request_id), request_id)


def _call_context(lines: Mapping[str, str]) -> CallContext:
    return CallContext(
        request_id=sane_request_id(lines.get("x-request-id", "")),
        tenant=lines.get("x-hivemind-tenant", ""),
        traceparent=sane_traceparent(lines.get("traceparent", "")),
        tracestate=lines.get("tracestate", ""),
        policy=lines.get("x-hivemind-policy", ""),
    )
