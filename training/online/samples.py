"""What the learner's items, and the texts shipped with hivemind, are to its model."""

import random
from collections.abc import Iterable
from typing import Final

from hivemind.training.control_set import control_set
from hivemind.training.encoding import Encoded
from hivemind.training.formatting import Refused, Turn
from hivemind.training.online.curriculum import reworded
from hivemind.training.online.memory import Item
from hivemind.training.online.model import OnlineModel

_AS_IT_CAME: Final = 0.5


class Samples:
    """Encodes each item once. `max_tokens`: the longest that is learnt; `drop`: the chance of a word to be left out."""

    def __init__(self, model: OnlineModel, rng: random.Random, *, max_tokens: int, drop: float) -> None:
        self._model, self._rng, self._max_tokens, self._drop = model, rng, max_tokens, drop
        self._known: dict[str, Encoded] = {}
        known = control_set()
        self._anchors = [model.encoder.text(t) for t in known.replay_texts]
        self._anchors += [model.encoder.turns(q) for q in known.replay_questions]

    def of(self, item: Item) -> Encoded:
        """The item as it came. Refused where it cannot be put into the model's form."""
        known = self._known.get(item.id)
        if known is None:
            known = self._known[item.id] = self._model.encoder.turns(turns_of(item))
        return known

    def fits(self, item: Item) -> bool:
        """Whether the model can read the item, and it is not too long."""
        try:
            fits = len(self.of(item).ids) <= self._max_tokens
        except Refused:
            fits = False
        if not fits:
            self.forget((item.id,))
        return fits

    def rehearsed(self, item: Item) -> Encoded:
        """The item as it came, or, from its second pass on, every other time with words left out."""
        if not self._drop or not item.passes or self._rng.random() < _AS_IT_CAME:
            return self.of(item)
        return self._model.encoder.turns(turns_of(reworded(item, self._drop, self._rng)))

    def anchors(self, count: int) -> list[Encoded]:
        """Some of the questions and plain texts shipped with hivemind that are replayed against forgetting."""
        return self._rng.sample(self._anchors, min(count, len(self._anchors)))

    def forget(self, names: Iterable[str]) -> None:
        """Keeps nothing of items."""
        for name in names:
            self._known.pop(name, None)


def turns_of(item: Item) -> tuple[Turn, ...]:
    """The conversation of an item, of which the last answer alone is learnt."""
    roles = {"developer": "system"}
    lesson = item.lesson
    asked = (Turn(roles.get(t.role, t.role), t.content, learn=False) for t in lesson.messages)
    return (*asked, Turn("assistant", lesson.answer))
