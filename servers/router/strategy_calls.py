"""Between the strategies and the Router's core: calls within budget and deadline, progress, and the answer's shape."""

import asyncio
import math
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import orjson

from hivemind.servers.common.catalogue import Model
from hivemind.servers.common.errors import MeshError
from hivemind.servers.common.tokens import prompt_size
from hivemind.servers.router.json_splice import top_level
from hivemind.servers.router.request import Body
from hivemind.servers.router.roles import Message, Prompt, Reply, RoleFailed
from hivemind.servers.router.selector import Decision, Option, inner_cost, inner_tokens
from hivemind.servers.router.sse import first_text, text_of
from hivemind.servers.router.work import Answer, UpstreamRefused, Work

if TYPE_CHECKING:
    from hivemind.servers.router.completion import Completions

Listener = Callable[[str, str], None]

KEEP_ALIVE_S: Final = 5.0
_NOT_FOR_ROLES: Final = ("model", "messages", "stream", "stream_options", "hivemind", "user")


@dataclass(frozen=True, slots=True)
class Progress:
    """A step of a strategy, for the client."""

    role: str
    note: str


class StrategyCaller:
    """Implements roles.Caller for one request. No call begins that the money held for the request would not cover."""

    def __init__(self, completions: "Completions", work: Work, option: Option, listener: Listener) -> None:
        self._completions, self._work, self._option, self._listener = completions, work, option, listener
        self._committed = 0

    async def ask(
        self,
        role: str,
        model: Model,
        messages: Sequence[Message],
        *,
        prompt: Prompt | None = None,
        temperature: float | None = None,
        schema: Mapping[str, Any] | None = None,
    ) -> Reply:
        """See roles.Caller."""
        part = self._part(role, messages, prompt, temperature, schema)
        upper = self._upper(model, part)
        if self._work.record.cost_micros + self._committed + upper > self._option.cost_micros:
            raise RoleFailed(f"the money held for this request does not reach for another call of {model.alias}")
        self._committed += upper
        self.progress(role, f"asking {model.alias}")
        try:
            parsed = await self._completions.piece(self._work, part, model)
        except MeshError as error:
            raise RoleFailed(error.message) from error
        except UpstreamRefused as error:
            raise RoleFailed(f"{model.alias} refused the request: {error}") from error
        finally:
            self._committed -= upper
        return _reply(parsed, model.alias)

    def time_left_s(self) -> float:
        """See roles.Caller."""
        return max(0.0, self._work.request.deadline - self._completions.clock())

    def progress(self, role: str, note: str) -> None:
        """See roles.Caller."""
        self._listener(role, note)

    def _upper(self, model: Model, part: Work) -> int:
        if model.free:
            return 0
        answer = part.request.max_tokens or model.max_output_tokens
        upper = model.cost_micros(part.request.prompt.upper, answer) + 1
        return upper if self._is_cascade else min(upper, inner_cost(self._work.request, model))

    @property
    def _is_cascade(self) -> bool:
        return self._option.strategy == "cascade"

    def _part(
        self,
        role: str,
        messages: Sequence[Message],
        prompt: Prompt | None,
        temperature: float | None,
        schema: Mapping[str, Any] | None,
    ) -> Work:
        """The work of one call. A cascade's calls keep the client's own sampling, the others have theirs."""
        request = self._work.request
        body: dict[str, Any] = {"model": "", "messages": list(messages)}
        if self._is_cascade:
            body |= {k: v for k, v in orjson.loads(request.body.raw).items() if k not in _NOT_FOR_ROLES}
            body["logprobs"] = True
            limit = request.max_tokens
        else:
            limit = inner_tokens(request)
            body["max_tokens"] = limit
        if temperature is not None:
            body["temperature"] = temperature
        if schema is not None:
            body["response_format"] = {
                "type": "json_schema", "json_schema": {"name": role, "strict": True, "schema": dict(schema)},
            }  # fmt: skip
        raw = orjson.dumps(body)
        called = replace(
            request, body=Body(raw, top_level(raw)), prompt=prompt_size(len(raw), len(messages), 0), stream=False,
            max_tokens=limit,
        )  # fmt: skip
        return Work(called, self._work.record, role=role, prompt_version=prompt.version if prompt is not None else "")


class StrategyStream:
    """A streamed request that a strategy answers: iterate `events`."""

    def __init__(self, completions: "Completions", work: Work, decision: Decision) -> None:
        self._completions, self.work, self._decision = completions, work, decision

    async def events(self) -> AsyncGenerator[Progress | Answer | None, None]:
        """Steps as they happen, None where nothing happened for 5 s, the answer at the end; raises as `plain` does.

        Leaving the iteration cancels every call under way.
        """
        steps: asyncio.Queue[Progress | None] = asyncio.Queue()
        task = asyncio.ensure_future(self._answer(lambda role, note: steps.put_nowait(Progress(role, note))))
        task.add_done_callback(lambda _: steps.put_nowait(None))
        try:
            while not (task.done() and steps.empty()):
                try:
                    step = await asyncio.wait_for(steps.get(), KEEP_ALIVE_S)
                except TimeoutError:
                    yield None
                    continue
                if step is not None:
                    yield step
            yield task.result()
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task

    async def _answer(self, listener: Listener) -> Answer:
        try:
            return await self._completions.by_strategy(self.work, self._decision, listener)
        except BaseException as error:
            self._completions.fail(self.work, error)
            raise


def composed(work: Work, text: str, model: str, finish_reason: str) -> Answer:
    """An answer in OpenAI's shape out of a strategy's text."""
    usage = work.record.usage
    parsed = {
        "id": f"chatcmpl-{work.record.request_id}",
        "object": "chat.completion",
        "created": int(work.request.created),
        "model": model,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}],
        "usage": {
            "prompt_tokens": usage.prompt,
            "completion_tokens": usage.completion,
            "total_tokens": usage.prompt + usage.completion,
        },
    }
    return Answer(work, orjson.dumps(parsed), parsed)


def _reply(parsed: Mapping[str, Any], alias: str) -> Reply:
    choices = parsed["choices"]
    choice = choices[0] if choices and isinstance(choices[0], dict) else {}
    text = first_text(parsed)
    if not text.strip():
        raise RoleFailed(f"{alias} answered nothing")
    return Reply(text, alias, _confidence(choice), text_of(choice.get("finish_reason")) or "stop")


def _confidence(choice: Mapping[str, Any]) -> float | None:
    """The geometric mean of the tokens' probabilities; None where the server told none."""
    told = choice.get("logprobs")
    content = told.get("content") if isinstance(told, dict) else None
    if not isinstance(content, list):
        return None
    logs = [t["logprob"] for t in content if isinstance(t, dict) and isinstance(t.get("logprob"), int | float)]
    return math.exp(sum(logs) / len(logs)) if logs else None
