"""The Router's metrics. Labels are bounded: models are aliases, tenants those with a budget or `other`."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from hivemind.servers.common.metrics import SECONDS
from hivemind.servers.router.records import Record

_LOOKUP_SECONDS = (0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05)


class RouterMetrics:
    """What DESIGN section 13 lists for requests. Children are kept: labels() costs more than inc()."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "hivemind_requests", "Requests by how they ended.", ["strategy", "chosen_model", "code"], registry=registry
        )
        self._seconds = Histogram(
            "hivemind_request_seconds", "Time from arrival to the end of the answer.", ["strategy", "chosen_model"],
            buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self._first = Histogram(
            "hivemind_first_token_seconds", "Time from arrival to the first token of a stream.", ["chosen_model"],
            buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self._tokens = Counter("hivemind_tokens", "Tokens by kind.", ["model", "kind"], registry=registry)
        self._cost = Counter("hivemind_cost_micros", "Cost in micro-USD.", ["model", "tenant"], registry=registry)
        self.shed = Counter("hivemind_shed", "Requests refused for load.", registry=registry)
        self.records_dropped = Counter("hivemind_records_dropped", "Records lost for want of room.", registry=registry)
        self.nominations_lost = Counter(
            "hivemind_nominations_lost", "Nominations whose conversation was not kept.", registry=registry
        )
        self.judge_flips = Gauge("hivemind_judge_flip_ratio", "Share of comparisons that flip.", registry=registry)
        self.in_flight = Gauge("hivemind_requests_in_flight", "Completions under way.", registry=registry)
        self.retrieval_seconds = Histogram(
            "hivemind_retrieval_seconds", "Time to look for platinum examples of a like question.",
            buckets=_LOOKUP_SECONDS, registry=registry,
        )  # fmt: skip
        self.examples_shown = Counter(
            "hivemind_examples_shown", "Platinum examples shown to the courier.", registry=registry
        )
        self.examples_held = Gauge("hivemind_examples_held", "Platinum examples that can be shown.", registry=registry)
        self._children: dict[tuple[str, ...], Counter | Histogram] = {}

    def observe(self, record: Record, *, tenant_label: str) -> None:
        """Counts a request that has ended."""
        alias, strategy = record.chosen_model or "none", record.strategy or "none"
        self._child(self._requests, strategy, alias, record.outcome).inc()
        self._timer(self._seconds, strategy, alias).observe(record.latency_s)
        if record.first_token_s is not None:
            self._timer(self._first, alias).observe(record.first_token_s)
        if record.usage.prompt or record.usage.completion:
            self._child(self._tokens, alias, "prompt").inc(record.usage.prompt)
            self._child(self._tokens, alias, "completion").inc(record.usage.completion)
        if record.cost_micros:
            self._child(self._cost, alias, tenant_label).inc(record.cost_micros)

    def _child(self, family: Counter, *labels: str) -> Counter:
        key = (family._name, *labels)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = family.labels(*labels)
        assert isinstance(child, Counter)
        return child

    def _timer(self, family: Histogram, *labels: str) -> Histogram:
        key = (family._name, *labels)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = family.labels(*labels)
        assert isinstance(child, Histogram)
        return child
