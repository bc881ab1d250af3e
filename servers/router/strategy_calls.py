"""Between the strategies and the Router's core: calls within budget and deadline, progress, and the answer's shape."""

import asyncio
import math
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import orjson

from hivemind.servers.common.catalogue import Model
from hivemind.servers.common.errors import MeshError
from hivemind.servers.common.tokens import prompt_size
from hivemind.servers.router.json_splice import top_level
from hivemind.servers.router.request import Body
from hivemind.servers.router.roles import Message, Prompt, Reply, RoleFailed
from hivemind.servers.router.selector import INNER_TOKENS, Decision, Option, inner_cost, inner_tokens
from hivemind.servers.router.sse import delta_text, first_text, text_of
from hivemind.servers.router.work import Answer, BrokenOff, UpstreamRefused, Work, refusal_text

if TYPE_CHECKING:
    from hivemind.servers.router.completion import Completions
    from hivemind.servers.router.open_stream import OpenStream

KEEP_ALIVE_S: Final = 5.0
_NOT_FOR_ROLES: Final = ("model", "messages", "stream", "stream_options", "hivemind", "user")
_STREAMED: Final[Mapping[str, Any]] = {"stream": True, "stream_options": {"include_usage": True}}


@dataclass(frozen=True, slots=True)
class Progress:
    """A step of a strategy, for the client."""

    role: str
    note: str


@dataclass(frozen=True, slots=True)
class Delta:
    """The next words of the answer, and what the model server that says them calls itself."""

    text: str
    model: str


class Audience:
    """The client of a streamed strategy, as the strategy sees it. One that reads slowly holds the words up."""

    def __init__(self) -> None:
        self._events: asyncio.Queue[Progress | Delta | None] = asyncio.Queue()

    def tell(self, step: Progress | None) -> None:
        """Takes a step, or None for the end; never waits."""
        self._events.put_nowait(step)

    async def hear(self, words: Sequence[Delta]) -> None:
        """Takes words that came together, and returns when the client has them."""
        for some in words:
            self._events.put_nowait(some)
        await self._events.join()

    async def next(self) -> Progress | Delta | None:
        """The next event; `taken` has to follow."""
        return await self._events.get()

    def taken(self) -> None:
        """The client has the event that `next` gave."""
        self._events.task_done()

    @property
    def empty(self) -> bool:
        """Whether no event waits."""
        return self._events.empty()


class StrategyCaller:
    """Implements roles.Caller for one request. No call begins that the money held for the request would not cover."""

    def __init__(self, completions: "Completions", work: Work, option: Option, audience: Audience | None) -> None:
        self._completions, self._work, self._option, self._audience = completions, work, option, audience
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
        fields: dict[str, Any] = {} if temperature is None else {"temperature": temperature}
        if schema is not None:
            described = {"name": role, "strict": True, "schema": dict(schema)}
            fields["response_format"] = {"type": "json_schema", "json_schema": described}
        part = self._part(role, model, messages, prompt, fields)
        with self._committed_to(model, part):
            parsed = await self._completions.piece(self._work, part, model)
        choices = parsed["choices"]
        choice = choices[0] if choices and isinstance(choices[0], dict) else {}
        reason = text_of(choice.get("finish_reason"))
        return _reply(first_text(parsed), model.alias, reason, _confidence(choice))

    async def speak(
        self, role: str, model: Model, messages: Sequence[Message], *, prompt: Prompt | None = None
    ) -> Reply:
        """See roles.Caller."""
        if self._audience is None:
            return await self.ask(role, model, messages, prompt=prompt)
        part = self._part(role, model, messages, prompt, _STREAMED)
        with self._committed_to(model, part):
            stream = await self._completions.open_piece(self._work, part, model)
            text = await relayed(stream, self._audience)
        return _reply(text, model.alias, stream.chat.finish_reason)

    @contextmanager
    def _committed_to(self, model: Model, part: Work) -> Iterator[None]:
        """Within it the money for one call is spoken for. What fails there is a RoleFailed, if nobody heard of it."""
        upper = self._upper(model, part)
        if self._work.record.cost_micros + self._committed + upper > self._option.cost_micros:
            raise RoleFailed(f"the money held for this request does not reach for another call of {model.alias}")
        self._committed += upper
        self.progress(part.role, f"asking {model.alias}")
        try:
            yield
        except BrokenOff:
            raise
        except MeshError as error:
            raise RoleFailed(error.message) from error
        except UpstreamRefused as error:
            raise RoleFailed(f"{model.alias} refused the request: {error}") from error
        finally:
            self._committed -= upper

    def time_left_s(self) -> float:
        """See roles.Caller."""
        return max(0.0, self._work.request.deadline - self._completions.clock())

    def progress(self, role: str, note: str) -> None:
        """See roles.Caller."""
        if self._audience is not None:
            self._audience.tell(Progress(role, note))

    def _upper(self, model: Model, part: Work) -> int:
        if model.free:
            return 0
        answer = part.request.max_tokens or model.max_output_tokens
        upper = model.cost_micros(part.request.prompt.upper, answer) + 1
        return upper if self._is_cascade else min(upper, inner_cost(self._work.request, model, tokens=answer))

    @property
    def _is_cascade(self) -> bool:
        return self._option.strategy == "cascade"

    def _part(
        self, role: str, model: Model, messages: Sequence[Message], prompt: Prompt | None, fields: Mapping[str, Any]
    ) -> Work:
        """The work of one call. A cascade's calls keep the client's own sampling, the others have theirs."""
        request = self._work.request
        shown = self._work.shown_to(model.alias) if self._is_cascade else None
        if shown is not None:
            messages = shown.request.messages
        body: dict[str, Any] = {"model": "", "messages": list(messages)}
        if self._is_cascade:
            body |= {k: v for k, v in orjson.loads(request.body.raw).items() if k not in _NOT_FOR_ROLES}
            body["logprobs"] = True
            # the prompt is the client's, with what it is shown; the fields count for nothing
            limit, size = request.max_tokens, (request if shown is None else shown.request).prompt
        else:
            limit, size = INNER_TOKENS if "response_format" in fields else inner_tokens(request), None
            body["max_tokens"] = limit
        raw = orjson.dumps(body | dict(fields))
        called = replace(
            request, body=Body(raw, top_level(raw)), prompt=size or prompt_size(len(raw), len(messages), 0),
            stream="stream" in fields, max_tokens=limit,
        )  # fmt: skip
        version = prompt.version if prompt is not None else ""
        seen = None if shown is None else replace(shown, request=called)
        return Work(called, self._work.record, role=role, prompt_version=version, shown=seen)


class StrategyStream:
    """A streamed request that a strategy answers: iterate `events`."""

    def __init__(self, completions: "Completions", work: Work, decision: Decision) -> None:
        self._completions, self.work, self._decision = completions, work, decision

    async def events(self) -> AsyncGenerator[Progress | Delta | Answer | None, None]:
        """Steps as they happen, None where nothing happened for 5 s, the answer's words if they come one by one.

        The whole answer is the last event, whether its words have come before or not. Raises MeshError where there is
        none, also after words. Leaving the iteration cancels every call under way.
        """
        audience = Audience()
        task = asyncio.ensure_future(self._answer(audience))
        task.add_done_callback(lambda _: audience.tell(None))
        try:
            while not (task.done() and audience.empty):
                try:
                    event = await asyncio.wait_for(audience.next(), KEEP_ALIVE_S)
                except TimeoutError:
                    yield None
                    continue
                if event is not None:
                    yield event
                audience.taken()
            yield task.result()
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task

    async def _answer(self, audience: Audience) -> Answer:
        try:
            return await self._completions.by_strategy(self.work, self._decision, audience)
        except BaseException as error:
            self._completions.fail(self.work, error)
            if isinstance(error, UpstreamRefused):  # the answer has begun: a status of its own comes too late
                raise MeshError(
                    "INVALID_FIELD", f"the model server refused the request: {refusal_text(error)}"
                ) from error
            raise


async def relayed(stream: "OpenStream", audience: Audience) -> str:
    """Hands the words on as they come; blank ones wait for the first that is not, lest the answer be blank."""
    outcome, said, heard = "CANCELLED", list[str](), 0
    try:
        async for batch in stream.batches():
            said += [words for _, parsed in batch if parsed and (words := delta_text(parsed))]
            if heard < len(said) and (heard or "".join(said).strip()):
                new, heard = said[heard:], len(said)
                await audience.hear([Delta(words, stream.chat.model) for words in new])
        outcome = "OK"
    except MeshError as error:
        outcome = error.reason
        if heard:
            raise BrokenOff(error.reason, error.message) from error
        raise
    finally:
        await stream.close(outcome)
    return "".join(said)


def completion_id(work: Work) -> str:
    """The id of an answer that a strategy gave, in OpenAI's shape."""
    return f"chatcmpl-{work.record.request_id}"


def composed(work: Work, text: str, model: str, finish_reason: str) -> Answer:
    """An answer in OpenAI's shape out of a strategy's text."""
    usage = work.record.usage
    parsed = {
        "id": completion_id(work),
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


def _reply(text: str, alias: str, finish_reason: str, confidence: float | None = None) -> Reply:
    if not text.strip():
        raise RoleFailed(f"{alias} answered nothing")
    return Reply(text, alias, confidence, finish_reason or "stop")


def _confidence(choice: Mapping[str, Any]) -> float | None:
    """The geometric mean of the tokens' probabilities; None where the server told none."""
    told = choice.get("logprobs")
    content = told.get("content") if isinstance(told, dict) else None
    if not isinstance(content, list):
        return None
    logs = [t["logprob"] for t in content if isinstance(t, dict) and isinstance(t.get("logprob"), int | float)]
    return math.exp(sum(logs) / len(logs)) if logs else None
