"""Puts together what answers in the background: the Router's core over the same models, without records, rates and
exploration, paid from the budget for refinement."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from prometheus_client import CollectorRegistry

from hivemind.servers.common.spend import BudgetBook
from hivemind.servers.router.completion import Completions
from hivemind.servers.router.fleet import Fleet
from hivemind.servers.router.metrics import RouterMetrics
from hivemind.servers.router.ports import Upstream
from hivemind.servers.router.recorder import Entry


class Labels(Protocol):
    """Names tenants in metrics."""

    def tenant_label(self, tenant: str) -> str:
        """The tenant as a bounded metric label."""


@dataclass(frozen=True, slots=True)
class _NoLimits:
    """Implements completion.Governance: what runs in the background is bounded by its number and its budget."""

    labels: Labels
    dial: float = 0.5

    def admit(self, tenant: str) -> None:
        """Takes every request."""

    def tenant_label(self, tenant: str) -> str:
        """See completion.Governance."""
        return self.labels.tenant_label(tenant)


class _NoRecords:
    """Implements completion.Keeper."""

    def add(self, entry: Entry) -> None:
        """Keeps nothing: what is in the background is no request of a client."""


def background_completions(
    fleet: Fleet, upstream: Upstream, budgets: BudgetBook, labels: Labels, *, clock: Callable[[], float]
) -> Completions:
    """The core for the background. Its metrics are not shown: they would count answers that no client has seen."""
    return Completions(
        fleet=fleet, upstream=upstream, budgets=budgets, recorder=_NoRecords(), governance=_NoLimits(labels),
        entry=lambda work: Entry(work.record), metrics=RouterMetrics(CollectorRegistry()), clock=clock,
    )  # fmt: skip
