"""An example for the online learner: what is checked before it is taken, and how it lies in the inbox. Pure."""

import hashlib
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import orjson

from hivemind.servers.common.redaction import redact_all

ROLES: Final = ("system", "developer", "user", "assistant")
MOST_TURNS: Final = 64
_MOST_CLAIMS: Final = 16
_SHORT: Final = 3
"""Words of an answer that is nothing but what was asked for."""
_WORD: Final = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Lesson:
    """A conversation and the answer to learn. `id`: the platinum example's, else what its texts give; `sequence`: its
    place in the ledger, 0 for none; `checked`: an Oracle or an Arbiter made the answer and a verdict accepted it."""

    id: str
    sequence: int
    tenant: str
    domain: str
    messages: tuple[Turn, ...]
    answer: str
    checked: bool = False

    @property
    def question_mark(self) -> str:
        """The same for the same question, whoever asks it and whatever its blanks and capitals."""
        return _mark(*(f"{t.role}\n{_plain(t.content)}" for t in self.messages))

    @property
    def answer_mark(self) -> str:
        """The same for the same answer."""
        return _mark(_plain(self.answer))

    @property
    def claims(self) -> list[str]:
        """What the answer names that the question does not: words with a capital letter or a digit, but not the first
        word of a longer answer, which has its capital anyway. Two answers that name nothing in common disagree."""
        asked = {w.lower() for t in self.messages for w in _WORD.findall(t.content)}
        words = _WORD.findall(self.answer)
        named = [
            w.lower() for i, w in enumerate(words) if is_name(w) and (i or len(words) <= _SHORT or not w.isalpha())
        ]
        return sorted(set(named) - asked)[:_MOST_CLAIMS]

    def to_json(self) -> bytes:
        """What `from_json` reads."""
        return orjson.dumps(self)

    @classmethod
    def from_json(cls, data: bytes | dict[str, Any]) -> "Lesson":
        """ValueError, KeyError or TypeError where it is none."""
        fields = data if isinstance(data, dict) else orjson.loads(data)
        turns: Sequence[dict[str, str]] = fields["messages"]
        return cls(**{**fields, "messages": tuple(Turn(**t) for t in turns)})


@dataclass(frozen=True, slots=True)
class Submission:
    """An example as it was sent. `platinum_id` and `sequence`: empty and 0 for none; `checked`: see Lesson."""

    platinum_id: str
    sequence: int
    tenant: str
    domain: str
    messages: tuple[Turn, ...]
    answer: str
    checked: bool = False


@dataclass(frozen=True, slots=True)
class Entry:
    """The door of the learner. `max_bytes`: the longest example; `refused_tenants`: those that do not consent."""

    max_bytes: int
    refused_tenants: Collection[str]

    def refusal(self, sent: Submission) -> str:
        """Why an example is not taken; empty: it is."""
        if sent.tenant in self.refused_tenants:
            return "consent"
        turns = sent.messages
        known = all(t.role in ROLES for t in turns)
        if (
            not known
            or not turns
            or len(turns) > MOST_TURNS
            or turns[-1].role != "user"
            or not turns[-1].content.strip()
        ):
            return "shape"
        if not sent.answer.strip() or sent.sequence < 0 or len(sent.platinum_id) > 128:
            return "shape"
        size = len(sent.answer.encode()) + sum(len(t.content.encode()) for t in turns)
        return "size" if size > self.max_bytes else ""


def lesson_of(sent: Submission) -> Lesson:
    """The example without secrets and personal data."""
    texts, _ = redact_all((*(t.content for t in sent.messages), sent.answer))
    messages = tuple(Turn(t.role, text) for t, text in zip(sent.messages, texts[:-1], strict=True))
    name = sent.platinum_id or (f"sequence-{sent.sequence}" if sent.sequence else "")
    lesson = Lesson(name, sent.sequence, sent.tenant, sent.domain, messages, texts[-1], sent.checked)
    return lesson if name else replace(lesson, id=f"text-{_mark(lesson.question_mark, lesson.answer_mark)}")


def is_name(word: str) -> bool:
    """Whether a word says what a text is about: a name or a number, by a capital letter or a digit."""
    return any(c.isupper() or c.isdigit() for c in word)


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _mark(*parts: str) -> str:
    return hashlib.sha256("\x00".join(parts).encode(errors="replace")).hexdigest()[:32]
