"""Metrics of the ledger and of the platinum stream."""

from collections.abc import Mapping
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from hivemind.servers.common.metrics import SECONDS

GROUPS_SHOWN: Final = 32


class PlatinumMetrics:
    """The label `group` is bounded: the first 32 groups by name are shown."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._lag = Gauge(
            "hivemind_platinum_lag", "Examples that a group has not acknowledged.", ["group"], registry=registry
        )
        self.commit_seconds = Histogram(
            "hivemind_ledger_commit_seconds", "Time to write and sync a batch.", buckets=SECONDS, registry=registry
        )
        self.refused = Counter("hivemind_ledger_refused", "Examples that the disk refused.", registry=registry)
        self.torn = Counter(
            "hivemind_ledger_torn_lines", "Half lines of dead processes that were cut.", registry=registry
        )
        self.bad_lines = Gauge("hivemind_ledger_bad_lines", "Lines that cannot be read.", registry=registry)
        self.delivered = Counter("hivemind_platinum_delivered", "Examples sent to consumers.", registry=registry)

    def show_lags(self, lags: Mapping[str, int]) -> None:
        """Replaces what was shown before."""
        self._lag.clear()
        for group in sorted(lags)[:GROUPS_SHOWN]:
            self._lag.labels(group).set(lags[group])
