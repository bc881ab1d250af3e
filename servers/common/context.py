"""What is known about the call at hand: its id, tenant and trace. Set by the interceptor or the edge, read anywhere."""

import re
import secrets
import time
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final

DEFAULT_TENANT: Final = "default"
_ID = re.compile(r"[a-z0-9._-]+")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{8,64}")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")
_RESERVED = frozenset({"state", "events", "preview", "promote", "rollback", "traffic", "outcomes", "examples"})


@dataclass(frozen=True, slots=True)
class CallContext:
    """One call: its id, who makes it (by header; empty if not said), its W3C trace context and its policy."""

    request_id: str
    tenant: str = ""
    traceparent: str = ""
    tracestate: str = ""
    policy: str = ""

    @property
    def trace_id(self) -> str:
        """The trace id, 32 hexadecimal digits, or an empty string."""
        return self.traceparent[3:35] if self.traceparent else ""


current_call: ContextVar[CallContext] = ContextVar("current_call")


def new_request_id() -> str:
    """A UUIDv7 (RFC 9562, section 5.7): 48 bits of Unix milliseconds, then random bits; ids sort by time."""
    value = (time.time_ns() // 1_000_000) << 80 | secrets.randbits(80)
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    digits = f"{value:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def sane_request_id(value: str) -> str:
    """The id that a proxy or client gave if it is one that can stand in logs and headers, else a new one."""
    return value if _REQUEST_ID.fullmatch(value) else new_request_id()


def sane_traceparent(value: str) -> str:
    """The header as it is if it has the form of W3C trace context, else an empty string."""
    return value if _TRACEPARENT.fullmatch(value) else ""


def is_id(value: str) -> bool:
    """Whether a text may be an id of this mesh: `[a-z0-9._-]+`, at most 128 characters, not a reserved word."""
    return len(value) <= 128 and bool(_ID.fullmatch(value)) and value not in _RESERVED and value.strip(".") != ""
