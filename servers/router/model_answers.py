"""What a model server's answer is worth: an answer, a failure that another call may cure, or a fault of the request."""

from typing import Any, Final

import orjson

from hivemind.servers.common.tokens import text_tokens
from hivemind.servers.router.ports import UpstreamResponse
from hivemind.servers.router.records import Tokens
from hivemind.servers.router.request import Request
from hivemind.servers.router.sse import error_text, text_of
from hivemind.servers.router.work import UpstreamRefused

_CLIENTS_FAULT: Final = frozenset({400, 413, 415, 422})


class AttemptFailed(Exception):
    """One call failed in a way that another may cure."""

    def __init__(self, why: str, *, retry_after_s: float = 0.0, endpoints_fault: bool = True) -> None:
        super().__init__(why)
        self.retry_after_s, self.endpoints_fault = retry_after_s, endpoints_fault


def checked_answer(response: UpstreamResponse, raw: bytes) -> dict[str, Any]:
    """The parsed answer of a model server that did its work; raises what fits otherwise."""
    if response.status != 200:
        raise_for(response, raw, "")
    try:
        parsed = orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise AttemptFailed("the model server's answer is not JSON") from None
    if not isinstance(parsed, dict) or not isinstance(parsed.get("choices"), list):
        raise AttemptFailed("the model server's answer is not a chat completion")
    return parsed


def raise_for(response: UpstreamResponse, raw: bytes, problem: str) -> None:
    """Raises what an answer that is no answer means: UpstreamRefused or AttemptFailed. `problem`: what a 200 lacks."""
    status = response.status
    if status in _CLIENTS_FAULT:
        raise UpstreamRefused(status, raw)
    if status == 200:
        raise AttemptFailed(f"the model server's answer cannot be used: {problem}")
    why = f"the model server answered {status}"
    try:
        body = orjson.loads(raw)
        if isinstance(body, dict) and body.get("error") and status >= 500:
            why += f": {error_text(body)}"
    except orjson.JSONDecodeError:
        pass
    raise AttemptFailed(why, retry_after_s=_retry_after(response), endpoints_fault=status != 429)


def _retry_after(response: UpstreamResponse) -> float:
    value = response.header("Retry-After")
    return min(float(value), 3600.0) if value.isdecimal() else 0.0


def tokens_of(usage: object, request: Request, written: int) -> Tokens:
    """What the model server counted, or an estimate that is marked so."""
    if isinstance(usage, dict):
        prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
        if isinstance(prompt, int) and isinstance(completion, int) and prompt >= 0 and completion >= 0:
            return Tokens(prompt, completion)
    return Tokens(request.prompt.expected, text_tokens(written), estimated=True)


def answer_bytes(parsed: dict[str, Any]) -> int:
    """About how many bytes the model has written, tool calls included."""
    total = 0
    for choice in parsed["choices"]:
        message = choice.get("message") if isinstance(choice, dict) else None
        if isinstance(message, dict):
            total += len(text_of(message.get("content"))) + len(str(message.get("tool_calls") or "")) // 2
    return total


def too_long(error: UpstreamRefused) -> bool:
    """Whether a model server refused a request for its length."""
    return any(word in error.body for word in (b"context_length", b"context length", b"exceed_context"))
