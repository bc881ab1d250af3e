"""What the Router knows of the Governor's configuration: the dial, the rates, which tenants have a budget."""

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from hivemind.servers.common.spend import BudgetView
from hivemind.servers.router.rates import Rate, RateLimiter
from hivemind.v1 import common_pb2, governor_pb2

_DEFAULT_DIAL: Final = 0.5


class GovernorState:
    """What the Governor last said; implements completion.Governance and governor_client.Follower.

    Before its first word nothing is known. `view` is of budgets for serving, `refinement` of those for refinement;
    `refining`: whether the latter may be spent.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.view = self.refinement = BudgetView()
        self.refining = False
        self.dial = _DEFAULT_DIAL
        self._limiter = RateLimiter(clock)
        self._known_tenants: frozenset[str] = frozenset({"default"})

    def take(self, message: governor_pb2.WatchConfigResponse) -> None:
        """See governor_client.Follower."""
        config = message.config
        self.refining = config.enabled
        self.refinement = _view(config, refinement=True)
        self.view = _view(config, refinement=False)
        self.dial = config.quality_dial
        rates = {r.tenant: Rate(r.requests_per_minute, r.burst) for r in config.rates}
        self._limiter.configure(rates, replicas=message.router_replicas)
        self._known_tenants = frozenset({"default", *self.view.tenants, *rates}) - {"*"}

    def lost(self) -> None:
        """See governor_client.Follower."""
        self.view, self.refinement = replace(self.view, fresh=False), replace(self.refinement, fresh=False)

    def admit(self, tenant: str) -> None:
        """See completion.Governance."""
        self._limiter.admit(tenant)

    def tenant_label(self, tenant: str) -> str:
        """See completion.Governance."""
        return tenant if tenant in self._known_tenants else "other"


def _view(config: governor_pb2.GovernorConfig, *, refinement: bool) -> BudgetView:
    tenants = frozenset(b.tenant for b in config.budgets if (b.purpose == common_pb2.REFINEMENT) == refinement)
    return BudgetView(tenants=tenants, known=True, fresh=True, fail_open=config.budget_fail_open)
