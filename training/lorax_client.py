"""`python -m hivemind.training.lorax_client`: the way from the platinum ledger to the model servers.

It gives every platinum example to the Trainer's online learner, and watches that each version which the learner
publishes comes to be held by every replica of the model servers. The registry's reconciler does the loading. A light
process: it holds no model and needs no training extra.
"""

import asyncio
import os
import random
import re
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import structlog
import uvloop
from prometheus_client import CollectorRegistry, Histogram, ProcessCollector
from pydantic import Field, ValidationError

from hivemind.servers.common.channels import follow, peer_channel
from hivemind.servers.common.errors import MeshError
from hivemind.servers.common.logs import configure_logs
from hivemind.servers.common.metrics_http import MetricsHttp
from hivemind.servers.common.settings import ServerSettings
from hivemind.servers.common.tasks import end_tasks
from hivemind.training.freshness import Freshness, Served
from hivemind.training.handover import BackOff, Handover, HandoverMetrics
from hivemind.training.lorax_peers import LearnerClient, PlatinumClient, StateClient, replicas_of
from hivemind.v1 import adapter_registry_pb2

_log = structlog.get_logger()

NAME: Final = "lorax_client"
ROLE: Final = "implementer"
_SECONDS: Final = (1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0, 90.0, 120.0, 300.0, 600.0, 1800.0)


class LoraxClientSettings(ServerSettings):
    """What every process has, and how examples are handed over. Times in seconds."""

    metrics_port: int = Field(default=7207, ge=0, le=65535)
    lorax_group: str = "lorax"
    """The consumer group: its place in the ledger is kept by the Arbiter."""
    lorax_consumer: str = ""
    """This process's name in the group, which must be its own and stay the same over a restart; empty: the host's."""
    lorax_in_flight: int = Field(default=32, gt=0)
    lorax_retry_s: float = Field(default=0.25, gt=0)
    lorax_retry_max_s: float = Field(default=5.0, gt=0)
    """The first and the longest wait before Arbiter or Trainer are tried again."""
    lorax_silence_s: float = Field(default=20.0, gt=0)
    """After how long without a sign of life the stream is joined again."""
    lorax_look_s: float = Field(default=2.0, gt=0)
    """How often the learner is asked what it has published."""
    lorax_late_s: float = Field(default=60.0, gt=0)
    """From which freshness on replicas that lack an adapter are named in the log."""
    lorax_drain_s: float = Field(default=1.5, gt=0)
    """How long the example in hand may take when the process is told to end."""
    lorax_niceness: int = Field(default=5, ge=0, le=19)


class Publications:
    """Observes freshness: follows the registry's state, and asks the learner what it has published."""

    def __init__(
        self, learner: LearnerClient, registry: StateClient, metrics: CollectorRegistry, *, look_s: float,
        late_s: float, now: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self._learner, self._registry, self._look_s, self._now = learner, registry, look_s, now
        self._freshness = Freshness(late_s)
        self._seconds = Histogram(
            "hivemind_freshness_seconds",
            "Time from a closed batch of the online learner until every replica holds what came of it.",
            buckets=_SECONDS,
            registry=metrics,
        )

    async def watch(self) -> None:
        """Follows the state for ever."""
        await follow("registry", self._registry.watch, self._take)

    async def ask(self) -> None:
        """Asks the learner for ever; one that is away has published nothing meanwhile."""
        while True:
            try:
                self._tell(self._freshness.publish(await self._learner.published()))
            except MeshError as error:
                _log.debug("learner_not_asked", reason=error.reason)
            for late in self._freshness.late(self._now()):
                _log.warning(
                    "publication_late", adapter=late.adapter_id, seconds=round(late.seconds, 1), lacking=late.lacking
                )
            await asyncio.sleep(self._look_s)

    def _take(self, message: adapter_registry_pb2.WatchStateResponse) -> None:
        for state in message.state.roles:
            if state.role == ROLE:
                self._tell(self._freshness.hold(replicas_of(state), state.adapters, self._now()))

    def _tell(self, found: Sequence[Served]) -> None:
        for served in found:
            self._seconds.observe(served.seconds)
            _log.info(
                "publication_served", adapter=served.adapter_id, by=served.by, freshness_s=round(served.seconds, 3)
            )


class Client:
    """The process from start to end."""

    def __init__(self, settings: LoraxClientSettings) -> None:
        self._settings = settings
        key = settings.api_key.get_secret_value() if settings.api_key is not None else None
        addresses = (settings.arbiter_address, settings.trainer_address, settings.registry_address)
        self._channels = [peer_channel(address) for address in addresses]
        arbiter, trainer, registry = self._channels
        metrics = CollectorRegistry()
        ProcessCollector(registry=metrics)
        learner = LearnerClient(trainer, api_key=key)
        platinum = PlatinumClient(
            arbiter, group=settings.lorax_group, consumer=settings.lorax_consumer or _host(), api_key=key,
            in_flight=settings.lorax_in_flight, silence_s=settings.lorax_silence_s,
        )  # fmt: skip
        back_off = BackOff(settings.lorax_retry_s, settings.lorax_retry_max_s, random.Random())
        self._handover = Handover(platinum, learner, HandoverMetrics(metrics), back_off)
        self._publications = Publications(
            learner, StateClient(registry, api_key=key), metrics,
            look_s=settings.lorax_look_s, late_s=settings.lorax_late_s,
        )  # fmt: skip
        self._draining = False
        self._http = MetricsHttp(host=settings.host, port=settings.metrics_port, registry=metrics, ready=self._ready)

    async def run(self) -> None:
        """Until SIGTERM or SIGINT; the example in hand is acknowledged first."""
        ended, loop = asyncio.Event(), asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, ended.set)
        await self._http.start()
        loops = (self._handover.run, self._publications.watch, self._publications.ask)
        tasks = [asyncio.create_task(_guarded(one)) for one in loops]
        _log.info("serving", metrics_port=self._http.port)
        await ended.wait()
        self._draining = True
        done = await self._handover.drain(self._settings.lorax_drain_s)
        await end_tasks(*tasks)
        for channel in self._channels:
            await channel.close()
        await self._http.stop()
        _log.info("stopped", example_in_hand="none" if done else "comes again")

    def _ready(self) -> tuple[bool, str]:
        if self._draining:
            return False, "the process is draining"
        return (not self._handover.trouble), self._handover.trouble or "ready"


async def _guarded(loop: Callable[[], Awaitable[None]]) -> None:
    """A loop that ends by an error is a defect: the process ends with it and is started again."""
    try:
        await loop()
    except asyncio.CancelledError:
        raise
    except Exception:
        _log.exception("loop_ended", loop=getattr(loop, "__qualname__", str(loop)))
        os.kill(os.getpid(), signal.SIGTERM)


def _host() -> str:
    """The host's name as an id of the mesh."""
    return re.sub(r"[^a-z0-9._-]", "-", socket.gethostname().lower())[:128] or NAME


def main() -> None:
    """Settings, logs, event loop."""
    try:
        settings = LoraxClientSettings()
        configure_logs(NAME, settings.log_level)
    except (ValidationError, KeyError) as error:
        sys.exit(f"{NAME}: a setting is wrong: {error}")
    os.nice(settings.lorax_niceness)

    async def run() -> None:
        await Client(settings).run()

    uvloop.run(run())


if __name__ == "__main__":
    main()
