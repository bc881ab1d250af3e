"""The engine's HTTP surface: OpenAI's endpoints, LoRAX's, and three to manage adapters, before llama.cpp generations.

An answer's bytes are llama.cpp's own on the OpenAI endpoints; what an adapter answered carries its id in the header
`x-adapter-id`.
"""

import importlib.metadata
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import orjson
from aiohttp import web

from hivemind.servers.engine.adapter_folder import AdapterFolder
from hivemind.servers.engine.chat_request import json_object, read_chat_request
from hivemind.servers.engine.engine import ALIAS
from hivemind.servers.engine.errors import STATUS, EngineError, Kind
from hivemind.servers.engine.generations import Generations
from hivemind.servers.engine.lorax import GenerateRequest, GenerateStream, read_generate_request, whole_answer
from hivemind.servers.engine.metrics import EngineMetrics, Tally
from hivemind.servers.engine.rehearsal import Rehearsal
from hivemind.servers.engine.relay import Relay, UpstreamAnswer

ADAPTER_HEADER: Final = "x-adapter-id"
_EVENTS: Final = {"content-type": "text/event-stream", "cache-control": "no-cache"}
_OPENAI_TYPE: Final[dict[Kind, str]] = {
    "validation": "invalid_request_error",
    "too_large": "invalid_request_error",
    "unknown_path": "invalid_request_error",
    "unknown_model": "invalid_request_error",
    "overloaded": "rate_limit_error",
}
_LORAX_TYPE: Final[dict[Kind, str]] = {"validation": "validation", "overloaded": "overloaded"}
_LORAX_STATUS: Final[dict[Kind, int]] = {"validation": 422, "unknown_model": 424, "generation": 424}
_RETRY_AFTER: Final = {"retry-after": "1"}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class About:
    """What /info says of the model. `context` is in tokens, for one request."""

    model: str
    context: int
    concurrent_requests: int


class Front:
    """The handlers; `app` is the aiohttp application to serve."""

    def __init__(
        self, generations: Generations, folder: AdapterFolder, relay: Relay, rehearsal: Rehearsal, about: About,
        *, metrics: EngineMetrics, max_body: int,
    ) -> None:  # fmt: skip
        self._generations, self._folder, self._relay, self._about = generations, folder, relay, about
        self._rehearsal, self._metrics = rehearsal, metrics
        self.app = web.Application(client_max_size=max_body)
        self.app.add_routes(
            [
                web.post("/v1/chat/completions", _openai(self._chat)),
                web.post("/v1/completions", _openai(self._chat)),
                web.get("/v1/models", self._models),
                web.post("/", _lorax(self._generate_compat)),
                web.post("/generate", _lorax(self._generate)),
                web.post("/generate_stream", _lorax(self._generate_stream)),
                web.get("/info", self._info),
                web.get("/health", self._health),
                web.get("/adapters", self._adapters),
                web.post("/adapters/load", _openai(self._load)),
                web.delete("/adapters/{id}", _openai(self._forget)),
                web.route("*", "/{path:.*}", _openai(_no_such_path)),
            ]
        )

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        chat = read_chat_request(await _body(request))
        self._rehearsal.note(chat.adapter_id, request.path, chat.body)
        with self._metrics.request(chat.adapter_id) as tally:
            async with (
                self._generations.lease(chat.adapter_id) as lease,
                self._relay.post(lease.port, request.path, chat.with_scales(lease.lora)) as answer,
            ):
                if answer.is_stream:
                    return await _relay_events(request, answer, chat.adapter_id, tally)
                body = await answer.read()
                tally.saw(body)
                tally.outcome = "ok" if answer.status == 200 else "refused"
                headers = {"content-type": answer.content_type, **_named(chat.adapter_id)}
                return web.Response(status=answer.status, body=body, headers=headers)

    async def _models(self, _request: web.Request) -> web.Response:
        base = {"id": ALIAS, "object": "model", "created": 0, "owned_by": "hivemind", "root": self._about.model}
        held = set(self._generations.held)
        adapters = [{**base, "id": name, "parent": ALIAS, "loaded": name in held} for name in self._folder.ids()]
        return _json({"object": "list", "data": [base, *adapters]})

    async def _generate_compat(self, request: web.Request) -> web.StreamResponse:
        asked = read_generate_request(await _body(request))
        if asked.stream:
            return await self._stream(request, asked)
        return _json([await self._answer(asked)], headers=_named(asked.adapter_id))

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        asked = read_generate_request(await _body(request))
        return _json(await self._answer(asked), headers=_named(asked.adapter_id))

    async def _generate_stream(self, request: web.Request) -> web.StreamResponse:
        return await self._stream(request, read_generate_request(await _body(request)))

    async def _answer(self, asked: GenerateRequest) -> dict[str, Any]:
        self._rehearsal.note(asked.adapter_id, "/completion", asked.body)
        with self._metrics.request(asked.adapter_id) as tally:
            async with self._generations.lease(asked.adapter_id) as lease:
                body = orjson.dumps({**asked.body, "lora": lease.lora})
                async with self._relay.post(lease.port, "/completion", body) as answer:
                    told = await answer.read()
                    tally.saw(told)
                    return whole_answer(asked, _checked(answer.status, told))

    async def _stream(self, request: web.Request, asked: GenerateRequest) -> web.StreamResponse:
        self._rehearsal.note(asked.adapter_id, "/completion", asked.body)
        with self._metrics.request(asked.adapter_id) as tally:
            async with self._generations.lease(asked.adapter_id) as lease:
                body = orjson.dumps({**asked.body, "stream": True, "lora": lease.lora})
                async with self._relay.post(lease.port, "/completion", body) as answer:
                    if answer.status != 200:
                        _checked(answer.status, await answer.read())
                    return await _relay_tokens(request, answer, asked, tally)

    async def _info(self, _request: web.Request) -> web.Response:
        about = self._about
        return _json(
            {
                "model_id": about.model,
                "model_sha": None,
                "model_dtype": "gguf",
                "model_device_type": "cpu",
                "model_pipeline_tag": "text-generation",
                "max_concurrent_requests": about.concurrent_requests,
                "max_best_of": 1,
                "max_input_length": about.context - 1,
                "max_total_tokens": about.context,
                "version": importlib.metadata.version("hivemind"),
            }
        )

    async def _health(self, _request: web.Request) -> web.Response:
        if self._generations.serving:
            return _json({"status": "ok"})
        return _json({"error": "the model is being loaded", "error_type": "healthcheck"}, status=503)

    async def _adapters(self, _request: web.Request) -> web.Response:
        return _json({"loaded": self._generations.held, "on_disk": self._folder.ids()})

    async def _load(self, request: web.Request) -> web.Response:
        adapter_id = json_object(await _body(request)).get("adapter_id")
        if not isinstance(adapter_id, str) or not adapter_id:
            raise EngineError("validation", "adapter_id: must name an adapter")
        await self._generations.load(adapter_id)
        return _json({"loaded": self._generations.held}, headers=_named(adapter_id))

    async def _forget(self, request: web.Request) -> web.Response:
        self._generations.forget(request.match_info["id"])
        return _json({"loaded": self._generations.held})


async def _no_such_path(request: web.Request) -> web.StreamResponse:
    raise EngineError("unknown_path", f"{request.method} {request.path} does not exist here")


def _openai(handler: Handler) -> Handler:
    """A handler whose errors have OpenAI's shape."""

    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except EngineError as error:
            headers = _RETRY_AFTER if error.kind in ("overloaded", "unavailable") else {}
            return _json(_openai_error(error), status=STATUS[error.kind], headers=headers)

    return answer


def _lorax(handler: Handler) -> Handler:
    """A handler whose errors have LoRAX's shape and status."""

    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except EngineError as error:
            return _json(_lorax_error(error), status=_LORAX_STATUS.get(error.kind, STATUS[error.kind]))

    return answer


def _openai_error(error: EngineError) -> dict[str, Any]:
    code = "model_not_found" if error.kind == "unknown_model" else error.kind
    param = "model" if error.kind == "unknown_model" else None
    kind = _OPENAI_TYPE.get(error.kind, "server_error")
    return {"error": {"message": error.message, "type": kind, "param": param, "code": code}}


def _lorax_error(error: EngineError) -> dict[str, str]:
    return {"error": error.message, "error_type": _LORAX_TYPE.get(error.kind, "generation")}


async def _body(request: web.Request) -> bytes:
    try:
        return await request.read()
    except web.HTTPRequestEntityTooLarge as error:
        raise EngineError("too_large", "the body is larger than this server takes") from error


async def _begin(request: web.Request, adapter_id: str | None) -> web.StreamResponse:
    response = web.StreamResponse(headers={**_EVENTS, **_named(adapter_id)})
    await response.prepare(request)
    return response


async def _relay_events(
    request: web.Request, answer: UpstreamAnswer, adapter_id: str | None, tally: Tally
) -> web.StreamResponse:
    """Hands llama.cpp's events on as they come; one that breaks off ends with an error event and without [DONE]."""
    response = await _begin(request, adapter_id)
    with tally.noting_who_left():
        try:
            async for chunk in answer.chunks():
                tally.saw(chunk)
                await response.write(chunk)
        except EngineError as error:
            tally.outcome = error.kind
            await response.write(b"\n\n" + _event(_openai_error(error)))
    return response


async def _relay_tokens(
    request: web.Request, answer: UpstreamAnswer, asked: GenerateRequest, tally: Tally
) -> web.StreamResponse:
    """Hands llama.cpp's events on as LoRAX's; one that breaks off ends with an error event."""
    response = await _begin(request, asked.adapter_id)
    stream = GenerateStream(asked)
    with tally.noting_who_left():
        try:
            async for event in _events(answer, tally):
                told = stream.take(event)
                if told is not None:
                    await response.write(_event(told))
            stream.check_whole()
        except EngineError as error:
            tally.outcome = error.kind
            await response.write(_event(_lorax_error(error)))
    return response


async def _events(answer: UpstreamAnswer, tally: Tally) -> AsyncIterator[dict[str, Any]]:
    async for line in answer.lines():
        tally.saw(line)
        if line.startswith(b"data:"):
            event = orjson.loads(line[5:])
            if "error" in event:
                raise EngineError("generation", str(event["error"].get("message", "the model failed")))
            yield event


def _checked(status: int, body: bytes) -> dict[str, Any]:
    """llama.cpp's answer, or its error raised as ours."""
    told: dict[str, Any] = orjson.loads(body)
    if status == 200:
        return told
    message = str(told.get("error", {}).get("message", "the model failed"))
    raise EngineError("validation" if status < 500 else "generation", message)


def _named(adapter_id: str | None) -> dict[str, str]:
    return {ADAPTER_HEADER: adapter_id} if adapter_id else {}


def _event(told: Any) -> bytes:
    return b"data:" + orjson.dumps(told) + b"\n\n"


def _json(told: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    lines = {"content-type": "application/json", **(headers or {})}
    return web.Response(status=status, body=orjson.dumps(told), headers=lines)
