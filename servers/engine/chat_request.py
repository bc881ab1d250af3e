"""Reads a request of the OpenAI surface: who is to answer, and what llama.cpp is sent."""

from dataclasses import dataclass
from typing import Any

import orjson

from hivemind.servers.engine.engine import ADAPTER_REPEAT_PENALTY, ALIAS
from hivemind.servers.engine.errors import EngineError

_OURS = ("adapter_id", "adapter_source", "lora")


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """`adapter_id` is None for the base model; `body` is the rest of the request, for llama.cpp."""

    adapter_id: str | None
    stream: bool
    body: dict[str, Any]

    def with_scales(self, lora: list[dict[str, float]]) -> bytes:
        """The body to send to a generation."""
        return orjson.dumps({**self.body, "lora": lora})


def read_chat_request(raw: bytes) -> ChatRequest:
    """Reads a body of /v1/chat/completions or /v1/completions; EngineError validation if it cannot be.

    The model is `courier` (or absent) for the base, or an adapter's id, which `adapter_id` may name too.
    """
    body = json_object(raw)
    model, named = body.get("model"), body.get("adapter_id")
    for field, value in (("model", model), ("adapter_id", named)):
        if value is not None and not isinstance(value, str):
            raise EngineError("validation", f"{field}: must be a string")
    from_model = None if model in (None, "", ALIAS) else str(model)
    if from_model and named and from_model != named:
        raise EngineError("validation", f"model and adapter_id name two adapters: {from_model!r} and {named!r}")
    rest = {key: value for key, value in body.items() if key not in _OURS}
    if named or from_model:
        rest.setdefault("repeat_penalty", ADAPTER_REPEAT_PENALTY)
    return ChatRequest(named or from_model, body.get("stream") is True, rest)


def json_object(raw: bytes) -> dict[str, Any]:
    """The JSON object in a body; EngineError validation if there is none."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise EngineError("validation", f"the body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise EngineError("validation", "the body must be a JSON object")
    return body
