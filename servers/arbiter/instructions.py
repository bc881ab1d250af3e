"""The instructions of Oracle and Arbiter: versioned files, and the fence around texts that are data."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from hivemind.servers.common.turn import Turn

_FOLDER: Final = Path(__file__).resolve().parent / "prompts"


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt file: its text, and its version, the SHA-256 of that text."""

    text: str
    sha256: str


@cache
def prompt(name: str) -> Prompt:
    """The prompt file of this name."""
    text = (_FOLDER / f"{name}.txt").read_text(encoding="utf-8").strip()
    return Prompt(text, hashlib.sha256(text.encode()).hexdigest())


@dataclass(frozen=True, slots=True)
class Quoted:
    """A text that is data, and what it is."""

    title: str
    text: str


def fenced(quotes: Iterable[Quoted], boundary: str) -> str:
    """Texts between marks. Nobody who wrote a text knows the `boundary`, so that no text can end its fence itself."""
    return "\n\n".join(f"<<<{boundary} {quote.title}\n{quote.text}\n{boundary}>>>" for quote in quotes)


def conversation(messages: Iterable[Turn]) -> Quoted:
    """A conversation as one text."""
    lines = (f"{turn.role}{f' ({turn.name})' if turn.name else ''}: {turn.content}" for turn in messages)
    return Quoted("conversation", "\n\n".join(lines))
