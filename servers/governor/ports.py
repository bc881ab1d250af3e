"""What the Governor's core needs from outside."""

from typing import Protocol

from hivemind.servers.governor.config import Config
from hivemind.servers.governor.money import BudgetState, Grant, Row, Settlement, Wish


class Store(Protocol):
    """Where configuration, budgets and spend are kept. Every method may raise STORE_UNAVAILABLE or STORE_FULL."""

    async def load(self) -> Config | None:
        """The configuration, None in an empty store."""

    async def save(self, old: Config | None, new: Config, *, idempotency_key: str, fingerprint: str) -> Config | None:
        """Puts `new` in the place of `old` in one step. None: another change came first. A repeated key answers the
        configuration of the first time; a key of another request is IDEMPOTENCY_KEY_REUSED."""

    async def repeated(self, idempotency_key: str, fingerprint: str) -> Config | None:
        """What a change with this key was answered before, None for a new key."""

    async def reserve(self, wish: Wish) -> Grant:
        """Sets money aside; BUDGET_EXHAUSTED where it does not reach."""

    async def settle(self, settlement: Settlement) -> list[str]:
        """Books spend; answers the reservations that had ended."""

    async def rows(self, days: list[str]) -> list[Row]:
        """Sums of spend of these days."""

    async def budgets(self, config: Config) -> tuple[str, list[BudgetState]]:
        """Today's date by the store's clock, and how full each budget is."""

    async def beat(self, watchers: list[str]) -> tuple[str, int]:
        """Says which Router watchers are here; answers the revision in force and how many there are in all."""
