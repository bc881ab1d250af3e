"""The cognitive map as a value, and the two parts that it is made of. Pure.

One part comes of the platinum ledger and can be made again from its files at any time. The other is what Routers and
the registry told, which they do not keep for ever.
"""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from hivemind.servers.orchestrator.domains import Champion, Evidence, Skill, Tally, skills_of
from hivemind.servers.orchestrator.ledger import Draft, Place

UNNAMED: Final = 0.25
"""What a draft weighs of which nobody said which model made it."""
VOICE: Final = 1.0
VERDICT: Final = 0.25
"""What a client's opinion and one of the Judge's scores weigh."""
CHAMPIONS_MAX: Final = 100
_RECENT: Final = 0.05


@dataclass(frozen=True, slots=True)
class CognitiveMap:
    """All skills by name. `revision` grows with every change; `updated`: when it was made, Unix seconds."""

    revision: int = 0
    updated: float = 0.0
    ledger_sequence: int = 0
    bad_lines: int = 0
    skills: tuple[Skill, ...] = ()

    def skill(self, name: str) -> Skill | None:
        """The skill of a domain."""
        return next((s for s in self.skills if s.name == name), None)

    def same_as(self, other: "CognitiveMap") -> bool:
        """Whether both say the same, whenever it was said."""
        mine = (self.ledger_sequence, self.bad_lines, self.skills)
        return mine == (other.ledger_sequence, other.bad_lines, other.skills)

    def to_json(self) -> dict[str, Any]:
        """For orjson."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "CognitiveMap":
        """The map of what orjson made of one."""
        skills = tuple(Skill(**{**s, "improved_by": tuple(s["improved_by"])}) for s in data["skills"])
        return cls(**{**data, "skills": skills})


@dataclass(slots=True)
class LedgerPart:
    """What the ledger came to so far. `refinement_micros`: what a refinement costs, a moving average."""

    tally: Tally
    place: Place = field(default_factory=Place)
    refinement_micros: float | None = None

    def count(self, drafts: Sequence[Draft], learners: Collection[str]) -> None:
        """Counts drafts of the aliases that learn: what another model drafted says nothing of them."""
        for draft in drafts:
            if not draft.human:
                self._price(draft.cost_micros)
            if draft.domain and (not draft.model or draft.model in learners):
                self._count(draft)

    def _count(self, draft: Draft) -> None:
        weight = 1.0 if draft.model else UNNAMED
        if draft.human:
            piece = Evidence(draft.domain, draft.adapter, 0.0, draft.when, weight * VOICE)
            self.tally.add_voice(piece, draft.tenant)
        else:
            self.tally.add(Evidence(draft.domain, draft.adapter, draft.score, draft.when, weight))

    def _price(self, cost_micros: int) -> None:
        before = self.refinement_micros
        self.refinement_micros = cost_micros if before is None else before + _RECENT * (cost_micros - before)

    def to_json(self) -> dict[str, Any]:
        """For orjson."""
        return {
            "place": asdict(self.place), "tally": self.tally.to_json(), "refinement_micros": self.refinement_micros
        }  # fmt: skip

    @classmethod
    def from_json(cls, data: dict[str, Any], half_life_s: float) -> "LedgerPart":
        """The part of what orjson made of one; KeyError, TypeError or ValueError if it was none."""
        price = data["refinement_micros"]
        tally = Tally.from_json(data["tally"], half_life_s)
        return cls(
            tally, Place(**{k: int(v) for k, v in data["place"].items()}), None if price is None else float(price)
        )


@dataclass(slots=True)
class ToldPart:
    """What Routers and registry told. `place`: behind the last opinion; `champions`: oldest first; `serving`: the
    champions in office, an empty text for a base model."""

    tally: Tally
    place: str = ""
    champions: tuple[Champion, ...] = ()
    serving: frozenset[str] = frozenset({""})

    def crowned(self, champion: Champion) -> None:
        """Remembers an adapter that became champion."""
        self.champions = (*self.champions, champion)[-CHAMPIONS_MAX:]

    def to_json(self) -> dict[str, Any]:
        """For orjson."""
        champions = [asdict(c) for c in self.champions]
        return {
            "tally": self.tally.to_json(), "place": self.place, "champions": champions, "serving": sorted(self.serving)
        }  # fmt: skip

    @classmethod
    def from_json(cls, data: dict[str, Any], half_life_s: float) -> "ToldPart":
        """The part of what orjson made of one; KeyError, TypeError or ValueError if it was none."""
        champions = tuple(Champion(**{**c, "domains": tuple(c["domains"])}) for c in data["champions"])
        return cls(Tally.from_json(data["tally"], half_life_s), data["place"], champions, frozenset(data["serving"]))


def map_of(ledger: LedgerPart, told: ToldPart, *, revision: int, now: float) -> CognitiveMap:
    """The map that both parts come to."""
    skills = skills_of((ledger.tally, told.tally), told.champions, told.serving)
    return CognitiveMap(revision, now, ledger.place.sequence, ledger.place.bad_lines, skills)
