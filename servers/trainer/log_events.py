"""The lines of a job's log.jsonl, as its process writes them. Pure."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

MAX_LINE: Final = 64 * 1024
MAX_FIGURES: Final = 50


@dataclass(frozen=True, slots=True)
class Event:
    """One line. `time` in Unix seconds; `reason` of a failure or a rejection; `figures` of an evaluation by name. What
    a line lacks is 0 or empty."""

    kind: str
    time: float = 0.0
    step: int = 0
    max_steps: int = 0
    loss: float = 0.0
    tokens_per_second: float = 0.0
    eta_s: float = 0.0
    backend: str = ""
    reason: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)


def events_in(chunk: bytes) -> tuple[list[Event], int]:
    """The events of the whole lines of a chunk, and how many bytes these are.

    A line that is none of a log (torn by a kill, too long) is passed over.
    """
    whole = chunk.rfind(b"\n") + 1
    if not whole:
        return [], len(chunk) if len(chunk) >= MAX_LINE else 0
    found = (_event(line) for line in chunk[:whole].splitlines())
    return [event for event in found if event is not None], whole


def _event(line: bytes) -> Event | None:
    try:
        data = json.loads(line)  # the standard library reads NaN, which a loss may be
    except (ValueError, RecursionError):
        return None
    if not isinstance(data, dict) or not isinstance(data.get("event"), str):
        return None
    return Event(
        kind=data["event"],
        time=_finite(data, "time"),
        step=_count(data, "step"),
        max_steps=_count(data, "max_steps"),
        loss=_number(data, "loss"),
        tokens_per_second=_finite(data, "tokens_per_second"),
        eta_s=_finite(data, "eta_s"),
        backend=_text(data, "backend"),
        reason=_text(data, "reason"),
        figures=_figures(data) if data["event"] == "evaluated" else {},
    )


def _number(data: dict[str, Any], name: str) -> float:
    value = data.get(name)
    try:
        return float(value) if isinstance(value, int | float) else 0.0
    except OverflowError:
        return math.inf


def _finite(data: dict[str, Any], name: str) -> float:
    value = _number(data, name)
    return value if math.isfinite(value) else 0.0


def _figures(data: dict[str, Any]) -> dict[str, float]:
    names = (n for n, v in data.items() if isinstance(v, int | float) and not isinstance(v, bool) and n != "time")
    return {name: _finite(data, name) for name in islice(names, MAX_FIGURES)}


def _count(data: dict[str, Any], name: str) -> int:
    value = data.get(name)
    return max(0, min(value, (1 << 31) - 1)) if isinstance(value, int) else 0


def _text(data: dict[str, Any], name: str) -> str:
    value = data.get(name)
    return value[:2000] if isinstance(value, str) else ""
