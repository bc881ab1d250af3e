"""Reservations, settlements and sums of spend, as values. Money in micro-USD."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Final

from hivemind.servers.common.context import is_id
from hivemind.servers.common.errors import MeshError, Violation, invalid_field

MAX_DAYS: Final = 366
DEFAULT_TTL_S: Final = 60.0
MAX_TTL_S: Final = 600.0
MAX_MICROS: Final = 10**15


@dataclass(frozen=True, slots=True)
class Wish:
    """A reservation that a server wants. `ttl_s` in seconds."""

    tenant: str
    purpose: str
    min_micros: int
    wanted_micros: int
    ttl_s: float
    on_expiry: str
    holder: str
    idempotency_key: str


@dataclass(frozen=True, slots=True)
class Grant:
    """A reservation that was made, or `unlimited`."""

    reservation_id: str = ""
    granted_micros: int = 0
    ttl_s: float = 0.0
    remaining_micros: int = 0
    unlimited: bool = False


@dataclass(frozen=True, slots=True)
class Item:
    """Spend to book."""

    tenant: str
    model: str
    purpose: str
    cost_micros: int
    requests: int
    prompt_tokens: int
    completion_tokens: int
    master_cost_micros: int


@dataclass(frozen=True, slots=True)
class Update:
    """What becomes of a reservation."""

    reservation_id: str
    spent_micros: int
    close: bool


@dataclass(frozen=True, slots=True)
class Settlement:
    """A batch of spend. Its key makes it safe to send again."""

    key: str
    items: tuple[Item, ...]
    updates: tuple[Update, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """Sums of one tenant, model and purpose on one day."""

    date: str
    tenant: str
    model: str
    purpose: str
    cost_micros: int = 0
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    master_cost_micros: int = 0


@dataclass(frozen=True, slots=True)
class BudgetState:
    """How full a budget is. `reset` in Unix seconds."""

    tenant: str
    period: str
    purpose: str
    limit_micros: int
    spent_micros: int
    held_micros: int
    reset: float

    @property
    def remaining_micros(self) -> int:
        """What can still be reserved."""
        return max(0, self.limit_micros - self.spent_micros - self.held_micros)


def check_wish(wish: Wish) -> None:
    """Raises INVALID_FIELD with every field that is wrong."""
    found = []
    if not is_id(wish.tenant):
        found.append(Violation("tenant", "must match [a-z0-9._-]+"))
    if not 0 < wish.min_micros <= MAX_MICROS:
        found.append(Violation("min_micros", f"must be from 1 to {MAX_MICROS}"))
    if not 0 <= wish.wanted_micros <= MAX_MICROS:
        found.append(Violation("wanted_micros", f"must be from 0 to {MAX_MICROS}"))
    if not 0 < wish.ttl_s <= MAX_TTL_S:
        found.append(Violation("ttl", f"must be above 0 s and at most {MAX_TTL_S:g} s"))
    _raise(found)


def check_settlement(settlement: Settlement) -> None:
    """Raises INVALID_FIELD with every field that is wrong."""
    found = []
    for i, item in enumerate(settlement.items):
        if not is_id(item.tenant):
            found.append(Violation(f"items[{i}].tenant", "must match [a-z0-9._-]+"))
        if not is_id(item.model):
            found.append(Violation(f"items[{i}].model", "must match [a-z0-9._-]+"))
        found += [
            Violation(f"items[{i}].{name}", f"must be from 0 to {MAX_MICROS}")
            for name in ("cost_micros", "requests", "prompt_tokens", "completion_tokens", "master_cost_micros")
            if not 0 <= getattr(item, name) <= MAX_MICROS
        ]
    for i, update in enumerate(settlement.updates):
        if not 0 <= update.spent_micros <= MAX_MICROS:
            found.append(Violation(f"reservations[{i}].spent_micros", f"must be from 0 to {MAX_MICROS}"))
    _raise(found)


def days_between(start: str, end: str, today: str) -> list[str]:
    """The days from `start` to `end`, both included, as YYYY-MM-DD; empty texts stand for `today`."""
    first, last = _day(start or today, "start_date"), _day(end or today, "end_date")
    if last < first:
        raise invalid_field("end_date", "is before start_date")
    if (last - first).days >= MAX_DAYS:
        raise invalid_field("start_date", f"at most {MAX_DAYS} days can be asked for at once")
    return list(_days(first, last))


def _days(first: date, last: date) -> Iterator[str]:
    for n in range((last - first).days + 1):
        yield (first + timedelta(days=n)).isoformat()


def _day(text: str, name: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise invalid_field(name, "must be a day such as 2026-01-31") from None


def _raise(found: list[Violation]) -> None:
    if found:
        raise MeshError(
            "INVALID_FIELD", "; ".join(f"{v.field}: {v.description}" for v in found), violations=tuple(found)
        )
