"""The engine's metrics. Labels are bounded: `model` is `base` or `adapter`, and no name that a client can invent."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from hivemind.servers.common.metrics import SECONDS
from hivemind.servers.engine.errors import EngineError

_TOKENS: Final = {"prompt": b"prompt_n", "cached": b"cache_n", "completion": b"predicted_n"}
"""What llama.cpp's `timings` call them, at the end of an answer or of a stream."""
TAIL: Final = 4096
"""Bytes at the end of an answer in which the timings are."""

Step = Literal["convert", "start", "rehearse"]


@dataclass(slots=True)
class Tally:
    """What is noted of one request. `outcome`: ok, the kind of an EngineError, refused (by llama.cpp), or left."""

    outcome: str = "ok"
    tail: bytes = b""

    def saw(self, chunk: bytes) -> None:
        """Keeps the end of what was answered."""
        self.tail = (self.tail + chunk)[-TAIL:]

    @contextmanager
    def noting_who_left(self) -> Iterator[None]:
        """Ends the block when the client has left: there is nobody to tell."""
        try:
            yield
        except ConnectionResetError:
            self.outcome = "left"


class EngineMetrics:
    """Counts of one engine; `registry` is what its metrics port serves."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._requests = Counter(
            "hivemind_engine_requests", "Requests ended, by model (base, adapter) and outcome.",
            ["model", "outcome"], registry=registry,
        )  # fmt: skip
        self._seconds = Histogram(
            "hivemind_engine_request_seconds", "From a request's arrival to the end of its answer.",
            ["model"], buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self._tokens = Counter(
            "hivemind_engine_tokens", "Tokens, by model and kind: prompt (read), cached (not read again), completion.",
            ["model", "kind"], registry=registry,
        )  # fmt: skip
        self._loads = Counter(
            "hivemind_engine_adapter_loads", "Adapters brought in, by outcome (ok, failed).",
            ["outcome"], registry=registry,
        )  # fmt: skip
        self._load_seconds = Histogram(
            "hivemind_engine_load_seconds",
            "Steps of bringing adapters in: convert (all that were asked for), start (a generation), rehearse.",
            ["step"], buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self.generations = Gauge(
            "hivemind_engine_generations", "Generations, by state: serving, draining.", ["state"], registry=registry
        )
        self.adapters = Gauge("hivemind_engine_adapters", "Adapters held.", registry=registry)
        self.under_way = Gauge(
            "hivemind_engine_requests_under_way", "Requests, by state: answered, waiting.", ["state"], registry=registry
        )

    @contextmanager
    def request(self, adapter_id: str | None) -> Iterator[Tally]:
        """Counts a request for as long as the block takes."""
        model, began, tally = "adapter" if adapter_id else "base", time.monotonic(), Tally()
        try:
            yield tally
        except EngineError as error:
            tally.outcome = error.kind
            raise
        except BaseException:
            tally.outcome = "left"
            raise
        finally:
            self._requests.labels(model, tally.outcome).inc()
            self._seconds.labels(model).observe(time.monotonic() - began)
            for kind, name in _TOKENS.items():
                found = re.findall(rb'"%s":(\d+)' % name, tally.tail)
                self._tokens.labels(model, kind).inc(int(found[-1]) if found else 0)

    @contextmanager
    def step(self, name: Step) -> Iterator[None]:
        """Times a step of a load."""
        with self._load_seconds.labels(name).time():
            yield

    def told(self, *, held: bool) -> None:
        """Counts an adapter that was asked for: it is held now, or cannot be."""
        self._loads.labels("ok" if held else "failed").inc()
