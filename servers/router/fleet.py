"""The model servers as they are now: the catalogue in force, a breaker per endpoint, a moving latency per alias,
and the adapters of each role."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from hivemind.servers.common.catalogue import Catalogue, Endpoint, Model
from hivemind.servers.router.adapters import AdapterBook
from hivemind.servers.router.breaker import Breaker
from hivemind.servers.router.selector import ModelState

_SMOOTHING: Final = 0.2
_ENOUGH: Final = 3
"""Answers before a moving average is believed."""


@dataclass(slots=True)
class _Seen:
    answers: int = 0
    latency_s: float = 0.0
    cost_ratio: float = 1.0
    turn: int = 0


@dataclass(slots=True)
class Fleet:
    """Holds the catalogue and what was seen of its models. `clock` is monotonic, in seconds."""

    catalogue: Catalogue
    clock: Callable[[], float]
    adapters: AdapterBook = field(default_factory=AdapterBook)
    _breakers: dict[tuple[str, str, str], Breaker] = field(default_factory=dict)
    _seen: dict[str, _Seen] = field(default_factory=dict)

    def replace(self, catalogue: Catalogue) -> None:
        """Puts a new catalogue in force; requests under way end with the old one."""
        self.catalogue = catalogue

    def states(self) -> dict[str, ModelState]:
        """Every model with its state, for the selector."""
        return {alias: self._state(model) for alias, model in self.catalogue.models.items()}

    def state_of(self, alias: str) -> dict[str, ModelState]:
        """The one model of this name; every one if there is none, so that an error can name them."""
        model = self.catalogue.get(alias)
        return self.states() if model is None else {alias: self._state(model)}

    def breaker(self, alias: str, endpoint: Endpoint) -> Breaker:
        """The breaker of one endpoint."""
        key = (alias, endpoint.base_url, endpoint.model)
        breaker = self._breakers.get(key)
        if breaker is None:
            breaker = self._breakers[key] = Breaker(self.clock)
        return breaker

    def in_turn(self, model: Model) -> list[Endpoint]:
        """The endpoints of a model that may be called now, the next in turn first. Empty: all rest."""
        seen = self._seen.setdefault(model.alias, _Seen())
        seen.turn += 1
        start = seen.turn % len(model.endpoints)
        turned = model.endpoints[start:] + model.endpoints[:start]
        return [e for e in turned if self.breaker(model.alias, e).allows()]

    def note(self, alias: str, *, latency_s: float, cost: int, upper: int) -> None:
        """Learns from an answer."""
        seen = self._seen.setdefault(alias, _Seen())
        seen.answers += 1
        weight = 1.0 if seen.answers == 1 else _SMOOTHING
        seen.latency_s += weight * (latency_s - seen.latency_s)
        if upper > 0:
            seen.cost_ratio = max(seen.cost_ratio, seen.cost_ratio * cost / upper)

    def resting_s(self, model: Model) -> float:
        """Seconds until the first endpoint may be tried again; 0 if one may now."""
        return min(self.breaker(model.alias, e).retry_in_s() for e in model.endpoints)

    def _state(self, model: Model) -> ModelState:
        seen = self._seen.get(model.alias)
        available = any(self.breaker(model.alias, e).allows() for e in model.endpoints)
        latency = seen.latency_s if seen is not None and seen.answers >= _ENOUGH else None
        ratio = seen.cost_ratio if seen is not None else 1.0
        registered = self.adapters.registered(model.role) if model.role else ()
        return ModelState(model, available, latency, ratio, registered)
