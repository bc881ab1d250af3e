"""What the learner remembers: examples to learn and to rehearse, and those that are held out and never learnt. Pure."""

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Final

from hivemind.servers.trainer.lesson import Lesson
from hivemind.training.online.model import Reading

STRIKES: Final = 2
UNREAD: Final = -1.0
"""The surprise of an example that was not read yet under these weights."""


@dataclass(frozen=True, slots=True)
class Item:
    """A lesson and how well it is learnt. `surprise`: its loss in nats a token when it was read last; `closed`: when
    its batch was closed, in Unix seconds; `strikes`: how often what was learnt with it harmed other tenants."""

    lesson: Lesson
    closed: float
    passes: int = 0
    surprise: float = UNREAD
    exact: bool = False
    strikes: int = 0

    @property
    def id(self) -> str:
        """The lesson's."""
        return self.lesson.id


@dataclass(frozen=True, slots=True)
class Bounds:
    """Most items to rehearse and to hold out, one of how many is held out, and the share that one tenant may have where
    there are others."""

    memory: int
    held_out: int
    held_out_of: int
    tenant_share: float


@dataclass(slots=True)
class Memory:
    """`items` in the order in which they came, `held` likewise."""

    bounds: Bounds
    items: dict[str, Item] = field(default_factory=dict)
    held: dict[str, Item] = field(default_factory=dict)

    def knows(self, name: str) -> bool:
        """Whether an example is remembered already."""
        return name in self.items or name in self.held

    def take(self, item: Item) -> bool:
        """Remembers an example, to be learnt or held out as its id says; True: held out. The oldest of the tenant that
        has too much makes room."""
        held = is_held_out(item.id, self.bounds.held_out_of)
        kept, most = (self.held, self.bounds.held_out) if held else (self.items, self.bounds.memory)
        kept[item.id] = item
        if len(kept) > most:
            del kept[_to_go(kept.values(), round(most * self.bounds.tenant_share))]
        return held

    def update(self, items: Iterable[Item]) -> None:
        """Replaces what is known of items; those that have gone stay gone."""
        for item in items:
            if item.id in self.items:
                self.items[item.id] = item

    def forget(self, names: Collection[str]) -> tuple[int, bool]:
        """Drops examples; how many there were, and whether any of them had been learnt."""
        gone = [name for name in names if self.knows(name)]
        learnt = any(name in self.items and self.items[name].passes for name in gone)
        for name in gone:
            self.items.pop(name, None)
            self.held.pop(name, None)
        return len(gone), learnt

    def unchecked_of(self, tenants: Collection[str]) -> list[str]:
        """The ids of what tenants taught and nobody checked."""
        known = (*self.items.values(), *self.held.values())
        return [i.id for i in known if i.lesson.tenant in tenants and not i.lesson.checked]

    def unread(self, *, again: bool = False) -> None:
        """Says that the weights are others now, so that nothing is known of how well they know the items. `again`: none
        of them was ever learnt into these weights, so each may have all its passes once more."""
        for name, i in self.items.items():
            passes = min(i.passes, 1) if again else i.passes
            self.items[name] = replace(i, passes=passes, surprise=UNREAD, exact=False)

    def strike(self, since: float, harmed: Collection[str]) -> int:
        """What was learnt harmed some tenants: counts against the lessons of all others whose batches were closed since
        (Unix seconds), of those that nobody checked if there are any, and drops those that it counts against a second
        time; how many these are."""
        recent = [i for i in self.items.values() if i.closed >= since and i.passes and i.lesson.tenant not in harmed]
        suspects = [i for i in recent if not i.lesson.checked] or recent
        for i in suspects:
            self.items[i.id] = replace(i, strikes=i.strikes + 1)
        gone = [i.id for i in suspects if i.strikes + 1 >= STRIKES]
        for name in gone:
            del self.items[name]
        return len(gone)

    @property
    def unlearnt(self) -> int:
        """Items that were never learnt from."""
        return sum(not i.passes for i in self.items.values())

    def tenants(self) -> set[str]:
        """Who teaches."""
        return {i.lesson.tenant for i in self.items.values()}

    def to_json(self) -> dict[str, Any]:
        """What `load` reads, for orjson."""
        return {"items": list(self.items.values()), "held": list(self.held.values())}

    def load(self, data: dict[str, Any]) -> None:
        """Takes over what was saved."""
        for name in ("items", "held"):
            found = (Item(**{**i, "lesson": Lesson.from_json(i["lesson"])}) for i in data[name])
            setattr(self, name, {i.id: i for i in found})


def foreseen(items: Iterable[Item], readings: Iterable[Reading]) -> list[Item]:
    """New items as weights read them: one whose answer they foresee whole counts as learnt once."""
    return [
        replace(i, passes=1, surprise=r.surprise, exact=True) if r.exact else i
        for i, r in zip(items, readings, strict=True)
    ]


def is_held_out(name: str, of: int) -> bool:
    """Whether an example is one of those that are held out: by its id, so that it stays so for ever."""
    return int(hashlib.sha256(b"held out " + name.encode()).hexdigest()[:8], 16) % of == 0


def _to_go(kept: Collection[Item], most_of_tenant: int) -> str:
    tenants = Counter(i.lesson.tenant for i in kept)
    (largest, count), *others = tenants.most_common()
    crowded = largest if others and count > most_of_tenant else ""
    return next(i.id for i in kept if not crowded or i.lesson.tenant == crowded)
