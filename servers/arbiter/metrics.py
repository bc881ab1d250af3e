"""The Arbiter's metrics of refinement. Labels are bounded."""

from prometheus_client import CollectorRegistry, Counter, Gauge


class RefinementMetrics:
    """Refinements by outcome, what they cost, and the queue before them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._refinements = Counter(
            "hivemind_refinements", "Refinements by how they ended.", ["outcome"], registry=registry
        )
        self._cost = Counter("hivemind_cost_micros", "Cost in micro-USD.", ["model", "tenant"], registry=registry)
        self.queue = Gauge("hivemind_refinement_queue", "Candidates that wait for refinement.", registry=registry)
        self.dropped = Counter(
            "hivemind_candidates_dropped", "Candidates dropped for want of room or consent.", registry=registry
        )

    def ended(self, outcome: str) -> None:
        """Counts a refinement: who made the answer, or the reason of its error."""
        self._refinements.labels(outcome.lower()).inc()

    def spent(self, alias: str, tenant_label: str, cost_micros: int) -> None:
        """Counts what a call cost."""
        self._cost.labels(alias, tenant_label).inc(cost_micros)
