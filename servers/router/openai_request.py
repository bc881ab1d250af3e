"""Reads a chat completion request in OpenAI's shape. It checks what the Router relies on and leaves the rest alone."""

import hashlib
import math
from dataclasses import dataclass
from typing import Any, Final

import orjson

from hivemind.servers.common.errors import MeshError, invalid_field
from hivemind.servers.common.tokens import PromptSize, count_images, prompt_size
from hivemind.servers.router.json_splice import top_level
from hivemind.servers.router.request import Body, Hints

DOMAIN_MAX: Final = 64
_ROLES: Final = ("system", "developer", "user", "assistant", "tool", "function")
_NUMBERS: Final = (("temperature", 0, 2), ("top_p", 0, 1), ("frequency_penalty", -2, 2), ("presence_penalty", -2, 2))
_WHOLE: Final = (("max_tokens", 1), ("max_completion_tokens", 1), ("n", 1), ("top_logprobs", 0), ("seed", None))
_INT32_MAX: Final = 2**31 - 1


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """What the Router needs to know of a request, and the request itself as bytes."""

    model: str
    body: Body
    prompt: PromptSize
    prompt_sha256: str
    messages: list[Any]
    single_only: bool
    stream: bool
    withhold_usage: bool
    max_tokens: int | None
    choices: int
    tools: bool
    images: bool
    session: str
    tenant: str
    refuse_on_budget: bool
    refine: bool
    hints: Hints


def read_chat_request(raw: bytes) -> ChatRequest:
    """Reads and checks a body; MeshError with the field that is wrong."""
    data = _parsed(raw)
    members = top_level(raw)
    if len(members) != len(data):
        names = [m.key for m in members]
        twice = next(n for n in names if names.count(n) > 1)
        raise invalid_field(twice, "stands twice in the body; send it once")
    messages = _messages(data)
    _check_numbers(data)
    stream = _typed(data, "stream", bool, "true or false") or False
    extras = _typed(data, "hivemind", dict, "an object") or {}
    include_usage, withhold = _usage_option(data, stream=stream)
    images = count_images(messages)
    limits = [data[k] for k in ("max_tokens", "max_completion_tokens") if data.get(k) is not None]
    return ChatRequest(
        model=_typed(data, "model", str, "a text") or "",
        body=Body(raw, members, include_usage),
        prompt=prompt_size(len(raw), len(messages), images),
        prompt_sha256=hashlib.sha256(orjson.dumps(messages)).hexdigest(),
        messages=messages,
        single_only=_single_only(data),
        stream=stream,
        withhold_usage=withhold,
        max_tokens=max(limits) if limits else None,
        choices=data.get("n") or 1,
        tools=bool(data.get("tools") or data.get("functions")),
        images=images > 0,
        session=_typed(data, "user", str, "a text") or "",
        tenant=_typed(extras, "tenant", str, "a text", prefix="hivemind.") or "",
        refuse_on_budget=_on_budget(extras),
        refine=_typed(extras, "refine", bool, "true or false", prefix="hivemind.") or False,
        hints=_hints(extras),
    )


def _parsed(raw: bytes) -> dict[str, Any]:
    try:
        data = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise MeshError("MALFORMED_REQUEST", f"the body is not JSON in UTF-8: {error}") from None
    if not isinstance(data, dict):
        raise MeshError("MALFORMED_REQUEST", "the body must be a JSON object")
    if b"\\u0000" in raw and _has_nul(data):
        raise MeshError("MALFORMED_REQUEST", "the body must not contain the character NUL")
    return data


def _single_only(data: dict[str, Any]) -> bool:
    """Whether the request asks for what only one call can give."""
    asked = any(data.get(k) for k in ("tools", "functions", "logprobs", "response_format"))
    return asked or (data.get("n") or 1) > 1


def _has_nul(value: Any) -> bool:
    if isinstance(value, str):
        return "\x00" in value
    if isinstance(value, dict):
        return any(_has_nul(k) or _has_nul(v) for k, v in value.items())
    return isinstance(value, list) and any(map(_has_nul, value))


def _messages(data: dict[str, Any]) -> list[Any]:
    messages = data.get("messages")
    if messages is None:
        raise invalid_field("messages", "is required", reason="MISSING_FIELD")
    if not isinstance(messages, list) or not messages:
        raise invalid_field("messages", "must be a list of at least one message")
    for i, message in enumerate(messages):
        _check_message(message, f"messages[{i}]")
    return messages


def _check_message(message: object, path: str) -> None:
    if not isinstance(message, dict):
        raise invalid_field(path, "must be an object with role and content")
    if message.get("role") not in _ROLES:
        raise invalid_field(f"{path}.role", f"must be one of {', '.join(_ROLES)}")
    content = message.get("content")
    if isinstance(content, str) or (content is None and message["role"] == "assistant"):
        return
    if not isinstance(content, list):
        raise invalid_field(f"{path}.content", "must be a text or a list of parts")
    for i, part in enumerate(content):
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            raise invalid_field(f"{path}.content[{i}]", "must be an object with a type")


def _check_numbers(data: dict[str, Any]) -> None:
    for name, low, high in _NUMBERS:
        value = data.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise invalid_field(name, f"must be a number from {low} to {high}")
    for name, least in _WHOLE:
        value = data.get(name)
        if value is None:
            continue
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or (least is not None and not least <= value <= _INT32_MAX):
            raise invalid_field(name, "must be a whole number" + ("" if least is None else f" of at least {least}"))


def _usage_option(data: dict[str, Any], *, stream: bool) -> tuple[bytes | None, bool]:
    """The stream_options to send if include_usage is absent, and whether to withhold the chunk that it brings."""
    options = _typed(data, "stream_options", dict, "an object")
    if not stream or (options is not None and "include_usage" in options):
        return None, False
    return orjson.dumps({**(options or {}), "include_usage": True}), True


def _on_budget(extras: dict[str, Any]) -> bool:
    value = extras.get("on_budget")
    if value not in (None, "DEGRADE", "REFUSE"):
        raise invalid_field("hivemind.on_budget", "must be DEGRADE or REFUSE")
    return value == "REFUSE"


def _hints(extras: dict[str, Any]) -> Hints:
    """Hints stand in `hivemind.hints`, or directly in `hivemind`."""
    nested = _typed(extras, "hints", dict, "an object", prefix="hivemind.")
    source, prefix = extras if nested is None else nested, "hints."
    if not source:
        return Hints()
    return check_hints(
        Hints(
            strategy=_typed(source, "strategy", str, "a text", prefix=prefix) or "",
            max_cost_micros=_whole(source, "max_cost_micros", prefix),
            max_latency_s=_seconds(source, "max_latency", prefix),
            difficulty=_number(source, "difficulty", prefix),
            domain=_typed(source, "domain", str, "a text", prefix=prefix) or "",
            quality_dial=_number(source, "quality_dial", prefix),
            subtasks=tuple(_texts(source, "subtasks", prefix)),
        ),
        prefix,
    )


def check_hints(hints: Hints, prefix: str) -> Hints:
    """The hints as they are if their values are allowed; MeshError otherwise. `prefix` stands before a field's name."""
    for name, value in (("difficulty", hints.difficulty), ("quality_dial", hints.quality_dial)):
        if value is not None and not 0 <= value <= 1:
            raise invalid_field(prefix + name, "must be a number from 0 to 1")
    if hints.max_cost_micros is not None and hints.max_cost_micros < 0:
        raise invalid_field(prefix + "max_cost_micros", "must not be negative")
    if hints.max_latency_s is not None and hints.max_latency_s <= 0:
        raise invalid_field(prefix + "max_latency", "must be longer than 0 s")
    if len(hints.domain) > DOMAIN_MAX or not hints.domain.isprintable():
        raise invalid_field(prefix + "domain", f"must be a printable text of at most {DOMAIN_MAX} characters")
    return hints


def _typed(data: dict[str, Any], name: str, kind: type, expected: str, *, prefix: str = "") -> Any:
    value = data.get(name)
    if value is not None and not isinstance(value, kind):
        raise invalid_field(prefix + name, f"must be {expected}")
    return value


def _whole(data: dict[str, Any], name: str, prefix: str) -> int | None:
    """A whole number, or one in a text as protobuf's JSON writes int64."""
    value = data.get(name)
    if isinstance(value, str) and value.lstrip("-").isdecimal() and value.isascii():
        value = int(value)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise invalid_field(prefix + name, "must be a whole number")
    return value


def _number(data: dict[str, Any], name: str, prefix: str) -> float | None:
    value = data.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise invalid_field(prefix + name, "must be a number")
    return value


def _seconds(data: dict[str, Any], name: str, prefix: str) -> float | None:
    """A duration as protobuf's JSON writes it (`"1.5s"`), or a number of seconds."""
    value = data.get(name)
    if isinstance(value, str) and value.endswith("s"):
        try:
            seconds = float(value[:-1])
        except ValueError:
            seconds = math.nan
        if math.isfinite(seconds):
            return seconds
    elif value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return value
    raise invalid_field(prefix + name, 'must be a duration such as "1.5s"')


def _texts(data: dict[str, Any], name: str, prefix: str) -> list[str]:
    value = data.get(name) or []
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise invalid_field(prefix + name, "must be a list of texts")
    return value
