"""The state of a role and every way it may change. Pure: a change is the new role and the event of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from hivemind.servers.common.errors import MeshError, invalid_field

EventKind = Literal["REGISTERED", "PROMOTED", "ROLLED_BACK", "TRAFFIC_CHANGED", "REJECTED"]
Mark = Literal["RETIRED", "REJECTED", ""]
STEPS: Final = (0.01, 0.05, 0.1, 0.25, 0.5)
"""How a challenger's traffic grows, step by step; other shares up to the last are allowed."""
_LINE_MAX: Final = 50
_REMEMBERED: Final = 100


@dataclass(frozen=True, slots=True)
class Challenge:
    """An adapter that challenges: its share of the traffic, or whether it only answers in the background."""

    adapter_id: str
    traffic: float
    shadow: bool


@dataclass(frozen=True, slots=True)
class Role:
    """A role. `champion`: '' is the base model. `line`: the champions before, latest last, to roll back to.

    `reign` grows with each change of champion, `split` with each change of who gets how much. `promoted`: the champion
    came by a promotion. `guarded`: champions that were rolled back automatically; it happens once to each.
    `promotions`: when the latest automatic ones were (Unix seconds).
    """

    name: str
    revision: int = 0
    champion: str = ""
    line: tuple[str, ...] = ()
    challenges: tuple[Challenge, ...] = ()
    reign: int = 0
    split: int = 0
    promoted: bool = False
    guarded: tuple[str, ...] = ()
    promotions: tuple[float, ...] = ()

    @property
    def etag(self) -> str:
        """Names this state of the role."""
        return f"r{self.revision}"

    @property
    def shares(self) -> dict[str, float]:
        """What each adapter gets of the traffic; the champion (or base model, '') what challengers leave."""
        given = {c.adapter_id: c.traffic for c in self.challenges if c.traffic > 0}
        return {self.champion: 1.0 - sum(given.values()), **given}

    @property
    def named(self) -> tuple[str, ...]:
        """The adapters that a replica must hold: champion, challengers, shadows."""
        return tuple(filter(None, (self.champion, *(c.adapter_id for c in self.challenges))))

    def challenge(self, adapter_id: str) -> Challenge | None:
        """The challenge of an adapter."""
        return next((c for c in self.challenges if c.adapter_id == adapter_id), None)


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened. `sequence`: its place in the history, 0 before it is stored; `time`: Unix seconds."""

    kind: EventKind
    role: str
    adapter_id: str
    time: float
    previous_champion: str = ""
    reason: str = ""
    preview_hash: str = ""
    request_id: str = ""
    sequence: int = 0


@dataclass(frozen=True, slots=True)
class Change:
    """A new role, what is to be told of it, and adapters whose mark changes."""

    role: Role
    event: Event
    marks: Mapping[str, Mark] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Occasion:
    """Why, when and by which call a change is made."""

    time: float
    request_id: str = ""
    reason: str = ""
    preview_hash: str = ""
    automatic: bool = False


def registered(role: Role, adapter_id: str, occasion: Occasion) -> Change:
    """A new version has come; traffic stays as it is."""
    return Change(_next(role), _event("REGISTERED", role, adapter_id, occasion))


def check_champion(role: Role, expected: str) -> None:
    """CHAMPION_CHANGED unless this champion is in office."""
    if role.champion != expected:
        message = f"the champion of {role.name} is {called(role.champion)}, not {called(expected)}; preview again"
        metadata = {"champion": role.champion, "expected_champion": expected, "etag": role.etag}
        raise MeshError("CHAMPION_CHANGED", message, metadata=metadata)


def promoted(role: Role, adapter_id: str, occasion: Occasion) -> Change:
    """The adapter takes office; the champion before is remembered."""
    if adapter_id == role.champion:
        raise invalid_field("adapter_id", f"{adapter_id} is champion of {role.name} already")
    others = tuple(c for c in role.challenges if c.adapter_id != adapter_id)
    times = (*role.promotions, occasion.time)[-_REMEMBERED:] if occasion.automatic else role.promotions
    new = replace(
        _new_reign(role), champion=adapter_id, line=(*role.line, role.champion)[-_LINE_MAX:], challenges=others,
        promoted=True, promotions=times,
    )  # fmt: skip
    marks: dict[str, Mark] = {adapter_id: ""}
    if role.champion:
        marks[role.champion] = "RETIRED"
    return Change(new, _event("PROMOTED", role, adapter_id, occasion), marks)


def rolled_back(role: Role, occasion: Occasion) -> Change:
    """The champion before comes back, without one the base model."""
    if not role.champion and not role.line:
        raise invalid_field("role", f"{role.name} is served by the base model; there is nothing to roll back")
    before = role.line[-1] if role.line else ""
    new = replace(
        _new_reign(role), champion=before, line=role.line[:-1], promoted=False,
        challenges=tuple(c for c in role.challenges if c.adapter_id != before),
        guarded=(*role.guarded, role.champion)[-_REMEMBERED:] if occasion.automatic else role.guarded,
    )  # fmt: skip
    marks: dict[str, Mark] = {before: ""} if before else {}
    if role.champion:
        marks[role.champion] = "REJECTED" if occasion.automatic else "RETIRED"
    return Change(new, _event("ROLLED_BACK", role, before, occasion), marks)


def with_traffic(role: Role, wish: Challenge, occasion: Occasion) -> Change:
    """Sets a challenger's share; 0 without shadow ends its challenge. INVALID_FIELD for what the role cannot give."""
    _check_wish(role, wish)
    others = tuple(c for c in role.challenges if c.adapter_id != wish.adapter_id)
    stays = wish.traffic > 0 or wish.shadow
    if sum(c.traffic for c in others) + wish.traffic > STEPS[-1] + 1e-9:
        raise invalid_field("traffic", "all challengers of a role together get half of its traffic at most")
    after = tuple(wish if c.adapter_id == wish.adapter_id else c for c in role.challenges)
    if role.challenge(wish.adapter_id) is None:
        after = (*after, wish)
    new = replace(_next(role), challenges=after if stays else others, split=role.split + 1)
    share = "shadow" if wish.shadow else f"{wish.traffic:.0%}"
    reason = f"{share}: {occasion.reason}" if occasion.reason else share
    event = _event("TRAFFIC_CHANGED", role, wish.adapter_id, replace(occasion, reason=reason))
    return Change(new, event, {wish.adapter_id: "" if stays else "RETIRED"})


def rejected(role: Role, adapter_id: str, occasion: Occasion) -> Change:
    """A challenger did not pass: its traffic ends."""
    others = tuple(c for c in role.challenges if c.adapter_id != adapter_id)
    new = replace(_next(role), challenges=others, split=role.split + 1)
    return Change(new, _event("REJECTED", role, adapter_id, occasion), {adapter_id: "REJECTED"})


def called(adapter_id: str) -> str:
    """An adapter's id for a sentence; the base model has none."""
    return adapter_id or "the base model"


def role_from_json(data: dict[str, Any]) -> Role:
    """Reads what orjson wrote of a Role."""
    plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items() if k != "challenges"}
    return Role(**plain, challenges=tuple(Challenge(**c) for c in data["challenges"]))


def _check_wish(role: Role, wish: Challenge) -> None:
    if not 0 <= wish.traffic <= STEPS[-1]:
        raise invalid_field("traffic", f"{wish.traffic:g} is not in [0, {STEPS[-1]:g}]")
    if wish.shadow and wish.traffic > 0:
        raise invalid_field("traffic", "must be 0 with shadow, which answers in the background only")
    if wish.adapter_id == role.champion:
        raise invalid_field(
            "adapter_id", f"{wish.adapter_id} is champion of {role.name} and gets what challengers leave"
        )


def _next(role: Role) -> Role:
    return replace(role, revision=role.revision + 1)


def _new_reign(role: Role) -> Role:
    return replace(_next(role), reign=role.reign + 1, split=role.split + 1)


def _event(kind: EventKind, role: Role, adapter_id: str, occasion: Occasion) -> Event:
    return Event(
        kind, role.name, adapter_id, occasion.time, previous_champion=role.champion, reason=occasion.reason,
        preview_hash=occasion.preview_hash, request_id=occasion.request_id,
    )  # fmt: skip
