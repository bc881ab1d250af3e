"""The one interceptor of every server.

It gives a call its context (request id, tenant, trace), checks the key, the load, the deadline and the message, turns
domain errors into status + ErrorInfo, hides unexpected ones, and counts.
"""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
import structlog
from google.protobuf.message import Message

from hivemind.servers.common.context import CallContext, current_call, sane_request_id, sane_traceparent
from hivemind.servers.common.errors import MeshError, not_built
from hivemind.servers.common.metrics import RpcMetrics
from hivemind.servers.common.status import grpc_code, to_status, trailers
from hivemind.servers.common.tasks import end_tasks
from hivemind.servers.common.validation import check_message

if TYPE_CHECKING:
    _Handler = grpc.RpcMethodHandler[Any, Any]

_log = structlog.get_logger()
_OPEN = ("/grpc.health.v1.", "/grpc.reflection.")
OVERLOAD_RETRY_S = 1.0
_NO_MORE = object()


@dataclass(frozen=True, slots=True)
class _Unreadable:
    """Stands for a request that could not be deserialized."""


@dataclass(frozen=True, slots=True)
class CallPolicy:
    """What holds for every call: the key asked for (None: none), the deadline in seconds where the client names none,
    and how many calls may be under way."""

    api_key: str | None
    deadline_s: float
    max_in_flight: int


class MeshInterceptor(grpc.aio.ServerInterceptor):
    """Wraps every handler of the contract; health is left alone, reflection only asks for the key."""

    def __init__(self, policy: CallPolicy, metrics: RpcMetrics) -> None:
        self._policy, self._metrics = policy, metrics
        self._in_flight = 0
        self._draining = asyncio.Event()
        self._wrapped: dict[str, _Handler] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler | None:
        """Called by grpc once a call; the wrapped handler of a method is made once."""
        method = handler_call_details.method
        wrapped = self._wrapped.get(method)
        if wrapped is not None:
            return wrapped
        handler = await continuation(handler_call_details)
        if handler is None or method.startswith(_OPEN):
            return handler
        wrapped = self._wrap(method, handler)
        self._wrapped[method] = wrapped
        return wrapped

    def end_watches(self) -> None:
        """Ends every Watch stream with DRAINING: they have no end of their own, and a drain would wait for them."""
        self._draining.set()

    def _wrap(self, method: str, handler: Any) -> _Handler:
        deserialize = _tolerant(handler.request_deserializer)
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                self._stream(method, handler.unary_stream), deserialize, handler.response_serializer
            )
        return grpc.unary_unary_rpc_method_handler(
            self._unary(method, handler.unary_unary), deserialize, handler.response_serializer
        )

    def _unary(self, method: str, handle: Callable[[Any, Any], Awaitable[Any]]) -> Callable[[Any, Any], Awaitable[Any]]:
        async def wrapped(request: Any, context: Any) -> Any:
            call = self._enter(method, context)
            try:
                self._admit(request, context)
                async with asyncio.timeout(self._time_left(context)):
                    answer = await handle(request, context)
            except Exception as error:
                await call.refuse(_told(error, method), unexpected=error)
            else:
                call.code = "OK"
                return answer
            finally:
                call.leave()

        return wrapped

    def _stream(
        self, method: str, handle: Callable[[Any, Any], AsyncIterator[Any]]
    ) -> Callable[[Any, Any], AsyncIterator[Any]]:
        watches = method.rpartition("/")[2].startswith("Watch")

        async def wrapped(request: Any, context: Any) -> AsyncIterator[Any]:
            call = self._enter(method, context)
            try:
                self._admit(request, context)
                messages = handle(request, context)
                async for message in _until(self._draining, messages) if watches else messages:
                    yield message
                call.code = "OK"
            except Exception as error:
                await call.refuse(_told(error, method), unexpected=error)
            finally:
                call.leave()

        return wrapped

    def _enter(self, method: str, context: Any) -> _Call:
        metadata = dict(context.invocation_metadata() or ())
        current_call.set(
            CallContext(
                request_id=sane_request_id(_text(metadata.get("x-request-id"))),
                tenant=_text(metadata.get("x-hivemind-tenant")),
                traceparent=sane_traceparent(_text(metadata.get("traceparent"))),
                tracestate=_text(metadata.get("tracestate")),
                policy=_text(metadata.get("x-hivemind-policy")),
            )
        )
        self._in_flight += 1
        self._metrics.in_flight.set(self._in_flight)
        return _Call(method, context, self._metrics, self._leave)

    def _leave(self) -> None:
        self._in_flight -= 1
        self._metrics.in_flight.set(self._in_flight)

    def _admit(self, request: object, context: Any) -> None:
        if self._policy.api_key is not None:
            check_key(dict(context.invocation_metadata() or ()), self._policy.api_key)
        if self._in_flight > self._policy.max_in_flight:
            raise overloaded()
        if isinstance(request, _Unreadable):
            raise MeshError(
                "MALFORMED_REQUEST", "the request is not a message of this RPC; check it against the contract"
            )
        if isinstance(request, Message):
            check_message(request)

    def _time_left(self, context: Any) -> float:
        remaining = context.time_remaining()
        return self._policy.deadline_s if remaining is None else min(self._policy.deadline_s, max(0.0, remaining))


@dataclass(slots=True)
class _Call:
    """One call under way, for its end: status, metrics, log."""

    method: str
    context: Any
    metrics: RpcMetrics
    on_leave: Callable[[], None]
    code: str = "CANCELLED"
    started: float = 0.0

    def __post_init__(self) -> None:
        self.started = time.monotonic()

    async def refuse(self, error: MeshError, *, unexpected: BaseException) -> None:
        """Ends the call with the error's status; never returns."""
        request_id = current_call.get().request_id
        self.code = error.outside.code
        if error.reason == "INTERNAL_ERROR":
            _log.error("unexpected_error", method=self.method, exc_info=unexpected)
        status = to_status(error, request_id)
        self.context.set_trailing_metadata((*trailers(error, status), ("x-request-id", request_id)))
        await self.context.abort(grpc_code(error), error.message)

    def leave(self) -> None:
        """Counts the call."""
        self.on_leave()
        seconds = time.monotonic() - self.started
        self.metrics.handled.labels(self.method, self.code).inc()
        self.metrics.seconds.labels(self.method).observe(seconds)
        _log.debug("rpc", method=self.method, code=self.code, seconds=round(seconds, 6))


async def _until(draining: asyncio.Event, messages: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """The messages until they end or the server does: MeshError DRAINING then, told in band too where the contract has
    a place for it."""
    ended = asyncio.ensure_future(draining.wait())
    following: asyncio.Future[Any] | None = None
    message: Any = None
    try:
        while True:
            following = asyncio.ensure_future(anext(messages, _NO_MORE))
            await asyncio.wait((following, ended), return_when=asyncio.FIRST_COMPLETED)
            if not following.done():
                error = MeshError("DRAINING", "the server is ending; watch again", retry_after_s=1.0)
                if message is not None and "error" in message.DESCRIPTOR.fields_by_name:
                    yield type(message)(error=to_status(error, current_call.get().request_id))
                raise error
            message = following.result()
            if message is _NO_MORE:
                return
            yield message
    finally:
        await end_tasks(*(task for task in (ended, following) if task is not None))


def check_key(headers: dict[str, Any], expected: str) -> None:
    """Raises KEY_MISSING or KEY_INVALID unless `authorization: Bearer KEY` or `x-api-key` carries the key."""
    given = _text(headers.get("authorization"))
    given = given[7:] if given[:7].lower() == "bearer " else _text(headers.get("x-api-key"))
    if not given:
        raise MeshError("KEY_MISSING", "this mesh asks for a key: send it as `authorization: Bearer KEY`")
    if not hmac.compare_digest(given.encode(), expected.encode()):
        raise MeshError("KEY_INVALID", "the key is not one of this mesh")


def overloaded() -> MeshError:
    """The error for a call above the server's limit."""
    message = "the server is at its limit of calls under way; retry after the time given"
    return MeshError("OVERLOADED", message, retry_after_s=OVERLOAD_RETRY_S)


def _told(error: Exception, method: str) -> MeshError:
    if isinstance(error, MeshError):
        return error
    if isinstance(error, NotImplementedError):  # what the generated base class of a service raises
        return not_built(method.removeprefix("/"))
    if isinstance(error, TimeoutError):
        return MeshError("DEADLINE_PASSED", "the deadline of the call passed before it was done")
    return MeshError("INTERNAL_ERROR", "an unexpected error; the request id finds it in the server's log")


def _tolerant(deserialize: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    """A broken message must become INVALID_ARGUMENT, where grpc itself answers INTERNAL."""
    if deserialize is None:
        return None

    def wrapped(data: bytes) -> Any:
        try:
            return deserialize(data)
        except Exception:
            return _Unreadable()

    return wrapped


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("latin-1")
    return value if isinstance(value, str) else ""
