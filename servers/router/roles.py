"""A Role is one model call with a purpose: proposer, critic, judge, worker or merger. Prompts are versioned files."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, Protocol

from hivemind.servers.common.catalogue import Model

Message = Mapping[str, Any]

PROMPTS: Final = Path(__file__).resolve().parent / "prompts"
QUOTE_BYTES: Final = 1_500
"""Of an answer that another role is shown, this much; so that upper costs hold."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """The instructions of a role, and their version: the start of their SHA-256."""

    text: str
    version: str


@dataclass(frozen=True, slots=True)
class Reply:
    """What a role said. `alias`: the model asked; `confidence`: mean token probability, None where not told."""

    text: str
    alias: str
    confidence: float | None = None
    finish_reason: str = "stop"


class RoleFailed(Exception):
    """A call did not bring an answer; the text is fit for a client."""


class Caller(Protocol):
    """Makes the calls of one request, within its budget and deadline."""

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
        """One call; RoleFailed if it fails or the budget does not reach."""

    async def speak(
        self, role: str, model: Model, messages: Sequence[Message], *, prompt: Prompt | None = None
    ) -> Reply:
        """As `ask`, for words that are the answer itself: a client that streams gets them as they come.

        RoleFailed as long as it has got none. What breaks after that is no RoleFailed: a strategy cannot cure it.
        """

    def time_left_s(self) -> float:
        """Seconds to the deadline."""

    def progress(self, role: str, note: str) -> None:
        """Tells the client what happens."""


@cache
def prompt(name: str) -> Prompt:
    """The prompt file of this name."""
    text = (PROMPTS / f"{name}.txt").read_text(encoding="utf-8").strip()
    return Prompt(text, f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}")


def instructed(messages: Sequence[Message], instructions: Prompt, *quoted: str) -> list[Message]:
    """The conversation with a role's instructions behind it, and texts that are data between marks."""
    parts = [instructions.text, *(quote(i, text) for i, text in enumerate(quoted, 1))]
    return [*messages, {"role": "user", "content": "\n\n".join(parts)}]


def quote(number: int, text: str) -> str:
    """A text between marks that it cannot contain itself."""
    cut = text.encode()[:QUOTE_BYTES].decode(errors="ignore").replace("<<<", "< < <").replace(">>>", "> > >")
    return f"<<<{number}\n{cut}\n{number}>>>"
