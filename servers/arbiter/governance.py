"""What the Governor allows of refinement, and who waits for it to change."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

from hivemind.servers.common.errors import MeshError
from hivemind.servers.common.spend import BudgetView
from hivemind.v1 import common_pb2, governor_pb2

_OTHER: Final = "other"
FIRST_WORD_S: Final = 3.0


@dataclass(frozen=True, slots=True)
class Allowed:
    """Whether refinement goes on, by whom, and the most that one example may cost, in micro-USD."""

    enabled: bool = True
    oracle: bool = True
    forced: bool = False
    price_ceiling_micros: int = 50_000

    def check(self) -> None:
        """MeshError REFINEMENT_DISABLED where neither Oracle nor Arbiter may be asked."""
        if not self.enabled:
            raise _disabled("the Governor has refinement switched off (enabled is false)")
        if not self.oracle and not self.forced:
            message = "the Governor allows no Oracle (enable_oracle_refinement) and forces no Arbiter"
            raise _disabled(f"{message} (force_gpt4o_arbiter)")

    @property
    def active(self) -> bool:
        """Whether any refinement may go on."""
        return self.enabled and (self.oracle or self.forced)


class Governance:
    """What the Governor last said; implements governor_client.Follower."""

    def __init__(self) -> None:
        self.view = BudgetView()
        self._allowed: Allowed | None = None
        self._tenants: frozenset[str] = frozenset({"default"})
        self._active, self._stopped = asyncio.Event(), asyncio.Event()
        self._stopped.set()
        self._known = asyncio.Event()

    def take(self, message: governor_pb2.WatchConfigResponse) -> None:
        """See governor_client.Follower."""
        config = message.config
        budgets = [b for b in config.budgets if b.purpose == common_pb2.REFINEMENT]
        self.view = BudgetView(
            tenants=frozenset(b.tenant for b in budgets), known=True, fresh=True, fail_open=config.budget_fail_open
        )
        self._allowed = Allowed(
            config.enabled, config.enable_oracle_refinement, config.force_gpt4o_arbiter,
            config.refinement_price_ceiling_micros,
        )  # fmt: skip
        self._tenants = frozenset({"default", *(b.tenant for b in config.budgets)}) - {"*"}
        now, before = (self._active, self._stopped) if self._allowed.active else (self._stopped, self._active)
        before.clear()
        now.set()
        self._known.set()

    def lost(self) -> None:
        """See governor_client.Follower."""
        self.view = replace(self.view, fresh=False)

    def allowed(self) -> Allowed:
        """What holds now; MeshError PEER_UNAVAILABLE before the Governor's first word."""
        if self._allowed is None:
            raise MeshError("PEER_UNAVAILABLE", "the Governor has not told yet what it allows", retry_after_s=1.0)
        return self._allowed

    async def first_allowed(self) -> Allowed:
        """As `allowed`, but a server that has just started waits a little for the Governor's first word."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._known.wait(), FIRST_WORD_S)
        return self.allowed()

    def tenant_label(self, tenant: str) -> str:
        """The tenant as it may stand in a metric: those with a budget and `default` by name."""
        return tenant if tenant in self._tenants else _OTHER

    async def until_active(self) -> None:
        """Waits until refinement may go on."""
        await self._active.wait()

    async def until_stopped(self) -> None:
        """Waits until refinement must stop."""
        await self._stopped.wait()


def _disabled(message: str) -> MeshError:
    return MeshError("REFINEMENT_DISABLED", message)
