"""Samples as token ids with a mask of what is learnt."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from hivemind.training.control_set import control_set
from hivemind.training.formatting import Formatted, Turn, format_turns


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids, and for each whether it is learnt (1) or only read (0)."""

    ids: tuple[int, ...]
    mask: tuple[int, ...]


class Encoder:
    """Encodes by a tokenizer of transformers that has a chat template."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def turns(self, turns: Sequence[Turn]) -> Encoded:
        """A conversation; its answers are learnt. Raises formatting.Refused where the template hides them."""
        return self.formatted(format_turns(turns, self.tokenizer))

    def formatted(self, sample: Formatted) -> Encoded:
        """A templated text. A token is learnt if it begins within an answer."""
        found = self.tokenizer(sample.text, add_special_tokens=False, return_offsets_mapping=True)
        mask = (int(any(a <= begin < b for a, b in sample.answers)) for begin, _ in found["offset_mapping"])
        return Encoded(tuple(found["input_ids"]), tuple(mask))

    def text(self, text: str) -> Encoded:
        """A plain text, all of which is learnt."""
        ids = tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        return Encoded(ids, (1,) * len(ids))

    def count(self, turns: Sequence[Turn]) -> int:
        """The length of a conversation in tokens."""
        return len(self.turns(turns).ids)


_TEXTS_IN_REPLAY: Final = 0.5


def replay(encoder: Encoder, samples: int, share: float, rng: random.Random) -> list[Encoded]:
    """Plain texts and questions to mix among `samples` so that they make up a share of all; each at most once."""
    wanted = round(samples * share / (1 - share))
    known = control_set()
    texts = rng.sample(known.replay_texts, min(len(known.replay_texts), round(wanted * _TEXTS_IN_REPLAY)))
    questions = rng.sample(known.replay_questions, min(len(known.replay_questions), wanted - len(texts)))
    return [encoder.text(t) for t in texts] + [encoder.turns(q) for q in questions]
