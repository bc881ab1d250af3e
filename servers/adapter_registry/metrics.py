"""The registry's metrics."""

from prometheus_client import CollectorRegistry, Gauge

from hivemind.servers.adapter_registry.feed import Snapshot, StateFeed
from hivemind.servers.adapter_registry.verdict import win_rate


class RegistryMetrics:
    """Traffic and win rate of champions and challengers; the labels are the adapters that roles name, so they are
    bounded."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._traffic = Gauge(
            "hivemind_adapter_traffic_ratio", "Share of a role's traffic that an adapter is given.",
            ["role", "adapter"], registry=registry,
        )  # fmt: skip
        self._wins = Gauge(
            "hivemind_adapter_win_rate", "Win rate of a challenger against the champion, without ties.",
            ["role", "adapter"], registry=registry,
        )  # fmt: skip

    async def follow(self, feed: StateFeed) -> None:
        """Shows each state that comes, for ever."""
        async for snapshot in feed.watch():
            self._show(snapshot)

    def _show(self, snapshot: Snapshot) -> None:
        self._traffic.clear()
        self._wins.clear()
        for name, view in snapshot.roles.items():
            for adapter, share in view.role.shares.items():
                self._traffic.labels(name, adapter or "base").set(share)
            for adapter, evidence in view.evidence.items():
                if evidence.pairs.decided:
                    self._wins.labels(name, adapter).set(win_rate(evidence.pairs)[0])
