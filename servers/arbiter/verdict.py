"""What Oracle and Arbiter answer: a verdict in JSON, and what a comparison answers. Everything is checked here."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

ANSWER_CHARS_MAX: Final = 64_000
REMARK_CHARS_MAX: Final = 2_000


@dataclass(frozen=True, slots=True)
class Schema:
    """A JSON schema with the name that the API wants for it."""

    name: str
    schema: Mapping[str, Any]


def _object(name: str, **properties: Mapping[str, Any]) -> Schema:
    shape = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    return Schema(name, shape)


_TEXT: Final = {"type": "string"}
_SHARE: Final = {"type": "number", "minimum": 0, "maximum": 1}
VERDICT: Final = _object(
    "verdict", answer=_TEXT, score=_SHARE, draft_score=_SHARE, confidence=_SHARE, changes=_TEXT, safety=_TEXT
)
COMPARISON: Final = _object("comparison", winner={"type": "string", "enum": ["A", "B", "TIE"]}, reason=_TEXT)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A final answer with how it and the draft were judged; scores and confidence in [0,1]."""

    answer: str
    score: float
    draft_score: float
    confidence: float
    changes: str
    safety: str


class Invalid(Exception):
    """An answer is not what was asked for; the text says in a few words what is wrong with it."""


def parse_verdict(text: str) -> Verdict:
    """The verdict in an answer; Invalid if there is none."""
    found = _parsed(text)
    answer = _text(found, "answer").strip()
    if not answer:
        raise Invalid("answer is empty")
    if len(answer) > ANSWER_CHARS_MAX:
        raise Invalid(f"answer is longer than {ANSWER_CHARS_MAX} characters")
    score, draft_score, confidence = (_share(found, name) for name in ("score", "draft_score", "confidence"))
    changes, safety = (_text(found, name)[:REMARK_CHARS_MAX] for name in ("changes", "safety"))
    return Verdict(answer, score, draft_score, confidence, changes, safety)


def parse_comparison(text: str) -> int:
    """1 if A is better, -1 if B is, 0 for a tie; Invalid if the answer does not say."""
    winner = _text(_parsed(text), "winner")
    if winner not in ("A", "B", "TIE"):
        raise Invalid("winner is not A, B or TIE")
    return {"A": 1, "B": -1, "TIE": 0}[winner]


def _parsed(text: str) -> dict[str, Any]:
    """The object, which some models put between other words or marks."""
    start, end = text.find("{"), text.rfind("}")
    if not 0 <= start < end:
        raise Invalid("there is no JSON object")
    try:
        found = orjson.loads(text[start : end + 1])
    except orjson.JSONDecodeError as error:
        raise Invalid("it is not valid JSON") from error
    if not isinstance(found, dict):
        raise Invalid("it is not a JSON object")
    return found


def _text(found: Mapping[str, Any], name: str) -> str:
    value = found.get(name)
    if not isinstance(value, str):
        raise Invalid(f"{name} is missing or not a string")
    if "\x00" in value:
        raise Invalid(f"{name} contains the character NUL")
    return value


def _share(found: Mapping[str, Any], name: str) -> float:
    value = found.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value) or not 0 <= value <= 1:
        raise Invalid(f"{name} is missing or not a number from 0 to 1")
    return float(value)
