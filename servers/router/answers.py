"""What an answer says about itself: the `hivemind` object, the `x-hivemind-*` headers, and errors in OpenAI's shape."""

from typing import Any, Final

import orjson

from hivemind.servers.common.errors import MeshError
from hivemind.servers.router.records import Record
from hivemind.servers.router.work import Work

_TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
}
_CODES: Final = {
    "CONTEXT_LENGTH_EXCEEDED": "context_length_exceeded",
    "UNKNOWN_MODEL": "model_not_found",
    "BUDGET_EXHAUSTED": "insufficient_quota",
    "RATE_LIMITED": "rate_limit_exceeded",
    "OVERLOADED": "rate_limit_exceeded",
    "KEY_MISSING": "invalid_api_key",
    "KEY_INVALID": "invalid_api_key",
}


def about(work: Work, model: str) -> dict[str, Any]:
    """The `hivemind` object of an answer; `model` is what the model server called itself."""
    record, refined = work.record, work.refined
    refinement = {"refined_answer": refined.answer, "platinum_id": refined.platinum_id} if refined is not None else {}
    return {
        "request_id": record.request_id,
        "strategy": record.strategy,
        "chosen_model": record.chosen_model,
        "model": model,
        "adapter": record.calls[-1].adapter if record.calls else "",
        "usage": {
            "prompt_tokens": record.usage.prompt,
            "completion_tokens": record.usage.completion,
            "total_tokens": record.usage.prompt + record.usage.completion,
            "estimated": record.usage.estimated,
        },
        "cost_micros": str(record.cost_micros),
        "latency": f"{record.latency_s:.6f}s",
        "reason": record.reason,
        "degraded": record.degraded,
        **refinement,
    }


def headers(record: Record) -> list[tuple[bytes, bytes]]:
    """The `x-hivemind-*` headers that can be told when an answer begins."""
    return [
        (b"x-request-id", record.request_id.encode()),
        (b"x-hivemind-request-id", record.request_id.encode()),
        (b"x-hivemind-strategy", record.strategy.encode()),
        (b"x-hivemind-chosen-model", record.chosen_model.encode()),
    ]


def whole_headers(record: Record, model: str) -> list[tuple[bytes, bytes]]:
    """The `x-hivemind-*` headers of a whole answer."""
    return [
        *headers(record),
        (b"x-hivemind-model", header_text(model)),
        (b"x-hivemind-adapter", header_text(record.calls[-1].adapter if record.calls else "")),
        (b"x-hivemind-cost-micros", b"%d" % record.cost_micros),
        (b"x-hivemind-latency", b"%.6fs" % record.latency_s),
        (b"x-hivemind-tokens", b"%d" % (record.usage.prompt + record.usage.completion)),
        (b"x-hivemind-reason", header_text(record.reason)),
        (b"x-hivemind-degraded", header_text("; ".join(record.degraded))),
    ]


def header_text(value: str) -> bytes:
    """A text that may stand in a header: what is not printable ASCII becomes `?`, at most 500 characters."""
    if value.isascii() and value.isprintable() and len(value) <= 500:
        return value.encode()
    return "".join(c if 32 <= ord(c) < 127 else "?" for c in value[:500]).encode()


def openai_error(error: MeshError, request_id: str) -> dict[str, Any]:
    """The body of an error in OpenAI's shape."""
    status = error.outside.http
    return {
        "error": {
            "message": error.message,
            "type": _TYPES.get(status, "server_error"),
            "param": error.violations[0].field if error.violations else None,
            "code": _CODES.get(error.reason, error.reason.lower()),
            "reason": error.reason,
        },
        "request_id": request_id,
    }


def error_event(error: MeshError, request_id: str) -> bytes:
    """An error in mid-stream; no `[DONE]` follows it."""
    return b"data: %b\n\n" % orjson.dumps(openai_error(error, request_id))
