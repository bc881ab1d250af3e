"""The Governor's metrics."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Gauge

from hivemind.servers.governor.money import BudgetState


class GovernorMetrics:
    """What is left of each configured budget; the labels are those of the configuration, so they are bounded."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._remaining = Gauge(
            "hivemind_budget_remaining_micros",
            "What can still be reserved of a budget, in micro-USD.",
            ["tenant", "period", "purpose"],
            registry=registry,
        )

    def show(self, states: Iterable[BudgetState]) -> None:
        """Replaces what was shown before."""
        self._remaining.clear()
        for state in states:
            self._remaining.labels(state.tenant, state.period, state.purpose).set(state.remaining_micros)
