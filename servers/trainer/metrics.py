"""The Trainer's metrics."""

from collections.abc import Iterable, Mapping
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from hivemind.servers.trainer.jobs import STATES
from hivemind.servers.trainer.log_events import Event

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
