"""The Trainer's metrics."""

from collections.abc import Iterable, Mapping
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from hivemind.servers.trainer.jobs import STATES
from hivemind.servers.trainer.learner import Seen
from hivemind.servers.trainer.learner_keys import LearnerStatus
from hivemind.servers.trainer.log_events import Event

_STEPS_AT_ONCE: Final = 1000
_PUBLISH_SECONDS: Final = (5.0, 10.0, 20.0, 30.0, 45.0, 60.0, 90.0, 120.0, 300.0, 900.0)
_STEP_SECONDS: Final = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0)


class TrainerMetrics:
    """What the jobs that this Trainer follows do, and how many jobs there are in all."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._steps = Histogram(
            "hivemind_training_step_seconds", "Time of an optimizer step.", buckets=_STEP_SECONDS, registry=registry
        )
        self._tokens = Counter(
            "hivemind_training_tokens", "Tokens trained on, by the speed that each step reports.", registry=registry
        )
        self._jobs = Gauge("hivemind_training_jobs", "Jobs by state.", ["state"], registry=registry)

    def learnt(self, steps: int, seconds: float, tokens: int) -> None:
        """Counts steps of an online learner that took so long in all."""
        for _ in range(min(steps, _STEPS_AT_ONCE)):
            self._steps.observe(seconds / steps)
        self._tokens.inc(max(0, tokens))

    def heard(self, last: Event | None, events: Iterable[Event]) -> Event | None:
        """Counts the steps of one job; answers its last. A step lasts since the one before of the same attempt."""
        for event in events:
            if event.kind == "started":
                last = None
            if event.kind != "step":
                continue
            steps = event.step - last.step if last is not None else 0
            seconds = event.time - last.time if last is not None else 0.0
            if steps > 0 and seconds > 0:
                self._steps.observe(seconds / steps)
                self._tokens.inc(seconds * max(0.0, event.tokens_per_second))
            last = event
        return last

    def show(self, counts: Mapping[str, int]) -> None:
        """Replaces what was shown before."""
        for state in STATES:
            self._jobs.labels(state).set(counts.get(state, 0))


class LearnerMetrics:
    """What the online learner that this Trainer keeps does."""

    def __init__(self, registry: CollectorRegistry, training: TrainerMetrics) -> None:
        self._training = training
        self._before: LearnerStatus | None = None
        self._examples = Gauge(
            "hivemind_learner_examples", "Examples of the online learner: waiting, learnt, held_out.",
            ["role", "state"], registry=registry,
        )  # fmt: skip
        self._checks = Gauge(
            "hivemind_learner_checks", "Checks of what was learnt that ended so: published, refused.",
            ["role", "outcome"], registry=registry,
        )  # fmt: skip
        self._set_aside = Gauge(
            "hivemind_learner_set_aside", "Examples that are not learnt, by reason.", ["role", "reason"],
            registry=registry,
        )  # fmt: skip
        self._distrusted = Gauge(
            "hivemind_learner_distrusted_tenants", "Tenants whose unchecked examples are not learnt.", ["role"],
            registry=registry,
        )  # fmt: skip
        self._cpu = Gauge(
            "hivemind_learner_cpu_seconds", "CPU time of learning and checking.", ["role"], registry=registry
        )
        self._held_out = Gauge(
            "hivemind_learner_held_out_exact", "Share of held-out answers that the last check found exact.",
            ["role", "who"], registry=registry,
        )  # fmt: skip
        self._publish = Histogram(
            "hivemind_learner_publish_seconds", "From the close of a batch to the registration of its adapter.",
            ["role"], buckets=_PUBLISH_SECONDS, registry=registry,
        )  # fmt: skip

    def show(self, role: str, seen: Seen) -> None:
        """Replaces what was shown before, and counts the steps since."""
        status = seen.status
        waiting = seen.inbox + status.unlearnt
        for state, count in (("waiting", waiting), ("learnt", status.learnt), ("held_out", status.held_out)):
            self._examples.labels(role, state).set(count)
        for outcome, count in (("published", status.published), ("refused", status.refused)):
            self._checks.labels(role, outcome).set(count)
        for reason, count in status.set_aside.items():
            self._set_aside.labels(role, reason).set(count)
        self._distrusted.labels(role).set(len(seen.distrusted))
        self._cpu.labels(role).set(status.cpu_seconds)
        for who, name in (("candidate", "held_out_exact"), ("champion", "champion_held_out_exact")):
            if name in status.evaluation:
                self._held_out.labels(role, who).set(status.evaluation[name])
        self._count_steps(status)

    def published(self, role: str, seconds: float) -> None:
        """An adapter was registered so long after its batch was closed."""
        self._publish.labels(role).observe(max(0.0, seconds))

    def _count_steps(self, now: LearnerStatus) -> None:
        before = self._before
        if before is not None and now.steps > before.steps:
            seconds = now.step_seconds - before.step_seconds
            self._training.learnt(now.steps - before.steps, seconds, now.tokens - before.tokens)
        self._before = now
