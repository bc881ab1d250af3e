"""How many tokens a request may have, before any model server has counted them."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

TOKENS_PER_MESSAGE: Final = 8
TOKENS_PER_IMAGE: Final = 2048
BYTES_PER_TOKEN: Final = 4.0


@dataclass(frozen=True, slots=True)
class PromptSize:
    """Tokens of a prompt. `upper` cannot be exceeded by a byte-level tokenizer; `expected` is for English text."""

    upper: int
    expected: int


def prompt_size(body_bytes: int, messages: int, images: int) -> PromptSize:
    """Sizes a request by its bytes.

    A byte-pair tokenizer never makes more tokens than bytes (Sennrich et al. 2016, on bytes); the chat template adds a
    few a message. English has about 4 bytes a token.
    """
    extra = messages * TOKENS_PER_MESSAGE + images * TOKENS_PER_IMAGE
    return PromptSize(upper=body_bytes + extra, expected=math.ceil(body_bytes / BYTES_PER_TOKEN) + extra)


def text_tokens(text_bytes: int) -> int:
    """An estimate of the tokens of a text, where the model server did not report its usage."""
    return math.ceil(text_bytes / BYTES_PER_TOKEN)


def count_images(messages: Sequence[Any]) -> int:
    """How many parts of a conversation in OpenAI's shape are not text."""
    return sum(1 for part in _parts(messages) if isinstance(part, dict) and part.get("type") not in ("text", "refusal"))


def _parts(messages: Sequence[Any]) -> Iterable[Any]:
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, list):
            yield from content
