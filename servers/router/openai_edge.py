"""The OpenAI-compatible HTTP surface: an ASGI app over the same core as the gRPC service.

It hands bytes on in both directions. A request changes only as Body.template says; an answer gets the `hivemind`
object, a stream one more chunk before `[DONE]`.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
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

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
ReadinessProbe = Callable[[], tuple[bool, str]]
DisconnectWatch = Callable[[Callable[[], None] | None], None]
DISCONNECT: Final = "hivemind.disconnect"
"""The extension of the ASGI scope by which the server tells that the client has left: it takes a callback, or None."""

_JSON: Final = (b"content-type", b"application/json")
_EVENTS: Final = (b"content-type", b"text/event-stream; charset=utf-8")
_NO_CACHE: Final = (b"cache-control", b"no-cache")
_DONE: Final = b"data: [DONE]\n\n"


class OpenAIEdge:
    """The ASGI app. `clock` is monotonic, in seconds. Make it inside the running loop."""

    def __init__(
        self,
        completions: Completions,
        arbiter: ArbiterClient,
        *,
        policy: CallPolicy,
        max_body: int,
        metrics: RouterMetrics,
        ready: ReadinessProbe,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._arbiter = arbiter
        self._completions, self._policy, self._max_body = completions, policy, max_body
        self._metrics, self._ready, self._clock = metrics, ready, clock
        self._in_flight, self._loop = 0, asyncio.get_running_loop()

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """One HTTP request."""
        if scope["type"] != "http":
            return
        path = scope["path"]
        if path == "/readyz":
            ready, detail = self._ready()
            await _send_json(send, 200 if ready else 503, {"ready": ready, "detail": detail})
            return
        lines = _headers(scope)
        call = _call_context(lines)
        current_call.set(call)
        try:
            if self._policy.api_key is not None:
                check_key(lines, self._policy.api_key)
            if path == "/v1/chat/completions" and scope["method"] == "POST":
                await self._chat(call, receive, send, scope["extensions"][DISCONNECT])
            elif path == "/v1/models" and scope["method"] == "GET":
                await _send_json(send, 200, self._models(), call.request_id)
            else:
                raise MeshError("UNKNOWN_METHOD", f"{scope['method']} {path} does not exist here")
        except MeshError as error:
            await _send_error(send, error, call.request_id)
        except UpstreamRefused as refused:
            await _send_refusal(send, refused, call.request_id)
        except Exception:
            _log.exception("unexpected_error", path=path)
            unexpected = MeshError("INTERNAL_ERROR", "an unexpected error; the request id finds it in the server's log")
            await _send_error(send, unexpected, call.request_id)

    async def _chat(self, call: CallContext, receive: Receive, send: Send, watch: DisconnectWatch) -> None:
        if self._in_flight >= self._policy.max_in_flight:
            self._metrics.shed.inc()
            raise overloaded()
        self._in_flight += 1
        self._metrics.in_flight.set(self._in_flight)
        try:
            arrived, created = self._clock(), time.time()
            chat = read_chat_request(await self._read_body(receive))
            request = self._request(call, chat, arrived, created)
            with _ClientWatch(watch, self._loop) as client:
                if chat.stream:
                    await self._stream(request, send, client, withhold_usage=chat.withhold_usage)
                else:
                    await self._plain(request, send, client)
        finally:
            self._in_flight -= 1
            self._metrics.in_flight.set(self._in_flight)

    async def _plain(self, request: Request, send: Send, client: "_ClientWatch") -> None:
        answer = await self._completions.plain(request)
        await self._arbiter.refine(answer.work)
        record = answer.work.record
        model = text_of(answer.parsed.get("model"))
        body = append_member(answer.raw, "hivemind", orjson.dumps(about(answer.work, model)))
        lines = [_JSON, (b"content-length", b"%d" % len(body)), *whole_headers(record, model)]
        client.disarm()
        await send({"type": "http.response.start", "status": 200, "headers": lines})
        await send({"type": "http.response.body", "body": body})

    async def _stream(self, request: Request, send: Send, client: "_ClientWatch", *, withhold_usage: bool) -> None:
        stream = await self._completions.stream(request)
        if isinstance(stream, StrategyStream):
            await self._relay_strategy(stream, send, client, withhold_usage=withhold_usage)
            return
        outcome = "CANCELLED"
        try:
            lines = [_EVENTS, _NO_CACHE, *headers(stream.work.record)]
            await send({"type": "http.response.start", "status": 200, "headers": lines})
            await _relay(stream, send, withhold_usage=withhold_usage)
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
        await send({"type": "http.response.body", "body": last})
        await stream.close(outcome)

    async def _relay_strategy(
        self, stream: StrategyStream, send: Send, client: "_ClientWatch", *, withhold_usage: bool
    ) -> None:
        """Comments while a strategy works, then its answer as chunks. An error after the first byte is told in band."""
        record, spoken = stream.work.record, False
        await send({"type": "http.response.start", "status": 200, "headers": [_EVENTS, _NO_CACHE, *headers(record)]})
        last = b""
        try:
            async with aclosing(stream.events()) as events:
                async for event in events:
                    if isinstance(event, Progress):
                        note = " ".join(f"{event.role}: {event.note}".split())
                        await send({"type": "http.response.body", "body": f": {note}\n\n".encode(), "more_body": True})
                    elif isinstance(event, Delta):
                        body = _spoken(stream.work, event, first=not spoken)
                        await send({"type": "http.response.body", "body": body, "more_body": True})
                        spoken = True
                    elif event is None:
                        await send({"type": "http.response.body", "body": b": keep-alive\n\n", "more_body": True})
                    else:
                        await self._arbiter.refine(event.work)
                        rest = _last_chunks(event, usage=not withhold_usage)
                        last = rest if spoken else _spoken(event.work, _whole(event), first=True) + rest
        except MeshError as error:
            last = error_event(error, record.request_id)
        client.disarm()
        await send({"type": "http.response.body", "body": last})

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

    async def _read_body(self, receive: Receive) -> bytes:
        message = await receive()
        body: bytes = message.get("body", b"")
        if not message.get("more_body"):
            return body
        pieces, size = [body], len(body)
        while message.get("more_body"):
            message = await receive()
            pieces.append(message.get("body", b""))
            size += len(pieces[-1])
            if size > self._max_body:
                raise MeshError("REQUEST_TOO_LARGE", f"the body is larger than {self._max_body} bytes")
        return b"".join(pieces)

    def _models(self) -> dict[str, Any]:
        fleet = self._completions.fleet
        names = ["auto", *fleet.catalogue.models]
        for model in fleet.catalogue.models.values():
            names += [f"{model.alias}:{adapter}" for adapter in fleet.adapters.registered(model.role)]
        data = [{"id": name, "object": "model", "created": 0, "owned_by": "hivemind"} for name in names]
        return {"object": "list", "data": data}


class _ClientWatch:
    """Cancels the task at hand when the client leaves, which cancels the call to the model server."""

    __slots__ = ("_left", "_task", "_watch")

    def __init__(self, watch: DisconnectWatch, loop: asyncio.AbstractEventLoop) -> None:
        self._watch, self._left = watch, False
        self._task = asyncio.current_task(loop)

    def __enter__(self) -> "_ClientWatch":
        self._watch(self._on_lost)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        self.disarm()
        if self._left and kind is asyncio.CancelledError and self._task is not None:
            self._task.uncancel()
            return True  # there is nobody to answer
        return False

    def disarm(self) -> None:
        """The answer is ready: from here on the end of the connection is nothing special."""
        self._watch(None)

    def _on_lost(self) -> None:
        if self._task is not None:
            self._left = True
            self._task.cancel()


async def _relay(stream: OpenStream, send: Send, *, withhold_usage: bool) -> None:
    """Hands the events on, one write for all that came together."""
    async for batch in stream.batches():
        if len(batch) == 1 and not (withhold_usage and batch[0][1] and is_usage_only(batch[0][1])):
            body = batch[0][0]
        else:
            body = b"".join(e for e, parsed in batch if not (withhold_usage and parsed and is_usage_only(parsed)))
        if body:
            await send({"type": "http.response.body", "body": body, "more_body": True})


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


async def _send_json(
    send: Send, status: int, body: Any, request_id: str = "", retry_after: float | None = None
) -> None:
    await _send_bytes(send, status, orjson.dumps(body), request_id, retry_after)


async def _send_bytes(send: Send, status: int, body: bytes, request_id: str, retry_after: float | None = None) -> None:
    lines = [_JSON, (b"content-length", b"%d" % len(body))]
    if request_id:
        lines.append((b"x-request-id", request_id.encode()))
    if retry_after is not None:
        lines.append((b"retry-after", b"%d" % max(1, round(retry_after))))
    await send({"type": "http.response.start", "status": status, "headers": lines})
    await send({"type": "http.response.body", "body": body})


async def _send_error(send: Send, error: MeshError, request_id: str) -> None:
    body = openai_error(error, request_id)
    await _send_json(send, error.outside.http, body, request_id, error.retry_after_s)


async def _send_refusal(send: Send, refused: UpstreamRefused, request_id: str) -> None:
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
        await _send_json(send, 400, openai_error(error, request_id), request_id)
        return
    if shaped:
        await _send_bytes(send, refused.status, refused.body, request_id)
        return
    error = MeshError("INVALID_FIELD", f"the model server refused the request with status {refused.status}")
    await _send_json(send, refused.status, openai_error(error, request_id), request_id)


def _headers(scope: Mapping[str, Any]) -> dict[str, str]:
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}


def _call_context(lines: Mapping[str, str]) -> CallContext:
    return CallContext(
        request_id=sane_request_id(lines.get("x-request-id", "")),
        tenant=lines.get("x-hivemind-tenant", ""),
        traceparent=sane_traceparent(lines.get("traceparent", "")),
        tracestate=lines.get("tracestate", ""),
        policy=lines.get("x-hivemind-policy", ""),
    )
