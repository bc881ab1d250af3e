"""Reads what the gate looks at: held-out examples and the control set, by the champion once and by candidates."""

from collections.abc import Callable, Sequence

from hivemind.training.control_set import control_set
from hivemind.training.encoding import Encoded
from hivemind.training.online.gate import HeldOut, Measured
from hivemind.training.online.memory import Item
from hivemind.training.online.model import OnlineModel, Opinion, Reading, Weights


class Reader:
    """Weights that stay as they are, and how they read items: each item once."""

    def __init__(self, model: OnlineModel, weights: Weights, encode: Callable[[Item], Encoded]) -> None:
        self.weights, self._model, self._encode = weights, model, encode
        self._known: dict[str, Reading] = {}

    def read(self, items: Sequence[Item]) -> list[Reading]:
        """How the weights read items."""
        missing = [i for i in items if i.id not in self._known]
        if missing:
            with self._model.as_of(self.weights):
                readings = self._model.read([self._encode(i) for i in missing])
            self._known |= {i.id: r for i, r in zip(missing, readings, strict=True)}
        return [self._known[i.id] for i in items]

    def held_out(self, held: Sequence[Item]) -> Measured:
        """How they read what is held out."""
        return Measured(_held(held, self.read(held)), 0.0, 0.0)


class Examiner:
    """`encode`: an item's sample; `pause_point`: called between readings, may raise to end."""

    def __init__(self, model: OnlineModel, encode: Callable[[Item], Encoded], pause_point: Callable[[], None]) -> None:
        self._model, self._encode, self._pause_point = model, encode, pause_point
        control = control_set()
        self._questions = [model.encoder.turns(q) for q in control.control_questions]
        self._texts = [model.encoder.text(t) for t in control.control_texts]
        self._champion = self.reader(model.champion)
        self._control: tuple[float, float] | None = None
        self._opinions: Sequence[Opinion] = ()

    def new_champion(self) -> None:
        """Forgets how the champion before read everything."""
        self._champion, self._control = self.reader(self._model.champion), None

    def reader(self, weights: Weights) -> Reader:
        """Weights that are asked more than once."""
        return Reader(self._model, weights, self._encode)

    def champion_reads(self, items: Sequence[Item]) -> list[Reading]:
        """How the champion reads items."""
        self._pause_point()
        return self._champion.read(items)

    def champion(self, held: Sequence[Item]) -> Measured:
        """All that is measured of the champion."""
        if self._control is None:
            with self._model.as_of(self._model.champion):
                found = self._model.read_with_opinions([*self._questions, *self._texts])
            self._opinions = [opinion for _, opinion in found]
            self._control = self._split([reading for reading, _ in found])
            self._pause_point()
        return Measured(_held(held, self.champion_reads(held)), *self._control)

    def held_out(self, weights: Weights, scale: float, held: Sequence[Item]) -> Measured:
        """Of a candidate the held-out part alone, which is cheap."""
        self._pause_point()
        with self._model.as_of(weights, scale):
            return Measured(_held(held, self._model.read([self._encode(i) for i in held])), 0.0, 0.0)

    def whole(self, weights: Weights, scale: float, part: Measured) -> Measured:
        """The rest: what the candidate has forgotten, and how far it is from the champion."""
        self._pause_point()
        with self._model.as_of(weights, scale):
            found = self._model.divergence([*self._questions, *self._texts], self._opinions)
        questions, text = self._split([reading for reading, _ in found])
        apart = [kl for _, kl in found[len(self._questions) :]]
        return Measured(part.held_out, questions, text, sum(apart) / len(apart))

    def _split(self, readings: Sequence[Reading]) -> tuple[float, float]:
        at = len(self._questions)
        return _loss(readings[:at]), _loss(readings[at:])


def _loss(readings: Sequence[Reading]) -> float:
    return sum(r.loss for r in readings) / max(1, sum(r.tokens for r in readings))


def _held(items: Sequence[Item], readings: Sequence[Reading]) -> tuple[HeldOut, ...]:
    return tuple(HeldOut(i.id, i.lesson.tenant, r, i.lesson.checked) for i, r in zip(items, readings, strict=True))
