"""The metrics that every server has. Labels are bounded: no tenant or model that a client can invent."""

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class RpcMetrics:
    """RPCs of one server, by method and status code."""

    def __init__(self, registry: CollectorRegistry) -> None:
        ProcessCollector(registry=registry)
        self.handled = Counter(
            "hivemind_rpcs", "RPCs handled, by method and status code.", ["method", "code"], registry=registry
        )
        self.seconds = Histogram(
            "hivemind_rpc_seconds",
            "Time from an RPC's arrival to its end.",
            ["method"],
            buckets=SECONDS,
            registry=registry,
        )
        self.in_flight = Gauge("hivemind_rpcs_in_flight", "RPCs under way.", registry=registry)
