"""The paid models behind Oracle and Arbiter, over the openai package. Base URLs come from the catalogue alone."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import orjson

from hivemind.servers.arbiter.ports import ModelCallFailed, ModelReply
from hivemind.servers.arbiter.verdict import Schema
from hivemind.servers.common.catalogue import Endpoint, Model

if TYPE_CHECKING:
    from openai import AsyncOpenAI, Timeout

BODY_BYTES_MAX: Final = 1024 * 1024
"""A body longer than this is left unread."""
_ROUNDS: Final = 2
_PAUSE_S: Final = 0.2
_PASSING: Final = frozenset({408, 409, 429, 500, 502, 503, 504, 529})
"""HTTP statuses that another try may cure; nothing was bought with them."""


class OpenAIModels:
    """Implements ports.ChatModels. Each endpoint is tried twice at most, and only while nothing was bought."""

    def __init__(self, *, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        self._sleep = sleep
        self._clients: dict[tuple[str, str | None], AsyncOpenAI] = {}

    async def ask(
        self,
        model: Model,
        messages: Sequence[Mapping[str, str]],
        *,
        schema: Schema,
        max_tokens: int,
        within_s: float,
    ) -> ModelReply:
        """See ports.ChatModels."""
        fields = {
            "messages": list(messages),
            "max_tokens": max_tokens,
            "temperature": 0.0,
            "extra_headers": {"Accept-Encoding": "identity"},  # a small packed body could be a large one
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": schema.name, "strict": True, "schema": dict(schema.schema)},
            },
        }
        limit_s = min(within_s, model.timeouts.total_s)
        try:
            async with asyncio.timeout(limit_s):
                return await self._first_that_answers(model, fields)
        except TimeoutError as error:
            message = f"{model.alias} did not answer within {limit_s:.3g} s"
            raise ModelCallFailed(message, may_have_cost=True) from error

    async def close(self) -> None:
        """Closes every connection."""
        for client in self._clients.values():
            await client.close()

    async def _first_that_answers(self, model: Model, fields: Mapping[str, Any]) -> ModelReply:
        tries = [endpoint for _ in range(_ROUNDS) for endpoint in model.endpoints]
        failed: ModelCallFailed | None = None
        for number, endpoint in enumerate(tries):
            if number:
                await self._sleep(_PAUSE_S * 2 ** min(number, 4))
            try:
                return await self._call(model, endpoint, fields)
            except _Passing as error:
                failed = ModelCallFailed(str(error), may_have_cost=False)
        raise failed or ModelCallFailed(f"{model.alias} has no endpoint", may_have_cost=False)

    async def _call(self, model: Model, endpoint: Endpoint, fields: Mapping[str, Any]) -> ModelReply:
        who = f"{model.alias} ({endpoint.host})"
        client = await self._client(endpoint, model)
        import httpx2  # what openai sends with; its errors while a body is read come through
        import openai

        call = client.chat.completions.with_streaming_response.create
        try:
            async with call(model=endpoint.model, **fields) as response:
                body = await _read(response.iter_bytes(65_536), who)
        except openai.APIStatusError as error:
            told = f"{who} answered with status {error.status_code}"
            if error.status_code in _PASSING:
                raise _Passing(told) from error
            raise ModelCallFailed(told, may_have_cost=False) from error
        except openai.APIConnectionError as error:
            if isinstance(error.__cause__, httpx2.ConnectError | httpx2.ConnectTimeout):
                raise _Passing(f"{who} cannot be reached") from error
            raise ModelCallFailed(f"{who} did not answer", may_have_cost=True) from error
        except (httpx2.HTTPError, httpx2.StreamError) as error:
            raise ModelCallFailed(f"{who} broke off its answer", may_have_cost=True) from error
        return reply_of(body, who)

    async def _client(self, endpoint: Endpoint, model: Model) -> "AsyncOpenAI":
        key = (endpoint.base_url, endpoint.api_key)
        if key not in self._clients:
            # in a thread: the import and the certificates take a second, which streams of this server cannot spare
            made = await asyncio.to_thread(_made, endpoint)
            self._clients.setdefault(key, made)
        return self._clients[key].with_options(timeout=_times(model))


def _made(endpoint: Endpoint) -> "AsyncOpenAI":
    import openai

    http = openai.DefaultAsyncHttpxClient(follow_redirects=False)
    return openai.AsyncOpenAI(
        base_url=endpoint.base_url, api_key=endpoint.api_key or "none", max_retries=0, http_client=http
    )


def _times(model: Model) -> "Timeout":
    import openai

    return openai.Timeout(model.timeouts.total_s, connect=model.timeouts.connect_s)


class _Passing(Exception):
    """A call failed in a way that another may cure."""


async def _read(chunks: Any, who: str) -> bytes:
    body = bytearray()
    async for chunk in chunks:
        body += chunk
        if len(body) > BODY_BYTES_MAX:
            raise ModelCallFailed(
                f"{who} answered with more than {BODY_BYTES_MAX} bytes", may_have_cost=True, passing=False
            )
    return bytes(body)


def reply_of(body: bytes, who: str) -> ModelReply:
    """The reply in a chat completion; its text is empty where the model refused. ModelCallFailed if it is none."""
    try:
        found = orjson.loads(body)
        choice = found["choices"][0]
        message = choice["message"]
        text = message.get("content")
    except (orjson.JSONDecodeError, LookupError, TypeError, AttributeError) as error:
        told = f"{who} answered with what is no chat completion"
        raise ModelCallFailed(told, may_have_cost=True, passing=False) from error
    usage = found.get("usage")
    return ModelReply(
        text=text if isinstance(text, str) else "",
        model=found["model"] if isinstance(found.get("model"), str) else "",
        whole=choice.get("finish_reason") == "stop",
        prompt_tokens=_count(usage, "prompt_tokens"),
        completion_tokens=_count(usage, "completion_tokens"),
    )


def _count(usage: Any, name: str) -> int | None:
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
