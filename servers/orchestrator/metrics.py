"""The orchestrator's metrics. Labels are bounded: steps and outcomes are those of cycle.py, domains the DOMAINS_MAX
that the map holds."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from hivemind.servers.orchestrator.cognitive_map import CognitiveMap
from hivemind.servers.orchestrator.cycle import OUTCOMES, STEPS, StepRecord

_SECONDS = (0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class OrchestratorMetrics:
    """Leadership, steps and skills."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._leader = Gauge("hivemind_leader", "1 on the replica that leads the loop.", registry=registry)
        self._seconds = Histogram(
            "hivemind_cycle_step_seconds", "Time that a step of the loop took.", ["step"], buckets=_SECONDS,
            registry=registry,
        )  # fmt: skip
        self._steps = Counter(
            "hivemind_cycle_steps", "Steps of the loop by how they ended.", ["step", "outcome"], registry=registry
        )
        self._cost = Counter(
            "hivemind_cycle_cost_micros", "Cost of the loop by estimate, in micro-USD.", registry=registry
        )
        self._confidence = Gauge(
            "hivemind_skill_confidence",
            "Lower bound of how good the mesh is in a domain.",
            ["domain"],
            registry=registry,
        )
        self._bad_lines = Gauge(
            "hivemind_map_bad_lines", "Lines of the ledger that the map skipped.", registry=registry
        )
        for step in STEPS:
            self._seconds.labels(step)
            for outcome in OUTCOMES:
                self._steps.labels(step, outcome)

    def lead(self, leads: bool) -> None:
        """Says whether this replica leads."""
        self._leader.set(leads)

    def ended(self, step: StepRecord) -> None:
        """Counts a step."""
        self._seconds.labels(step.name).observe(step.duration_s)
        self._steps.labels(step.name, step.outcome).inc()
        self._cost.inc(step.cost_micros)

    def show(self, found: CognitiveMap) -> None:
        """Replaces the skills that were shown before."""
        self._confidence.clear()
        for skill in found.skills:
            self._confidence.labels(skill.name).set(skill.confidence)
        self._bad_lines.set(found.bad_lines)
