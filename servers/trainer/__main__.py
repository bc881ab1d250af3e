"""Composition root of the trainer server: `python -m hivemind.servers.trainer`."""

import asyncio
import importlib.util
import os
import sys
from collections.abc import Sequence
from typing import Final

from prometheus_client import CollectorRegistry

from hivemind.servers.common.catalogue import Catalogue, CatalogueError, environment, load_catalogue
from hivemind.servers.common.catalogue_watch import CatalogueWatch
from hivemind.servers.common.channels import peer_channel
from hivemind.servers.common.context import new_request_id
from hivemind.servers.common.redis_client import redis_client
from hivemind.servers.common.server import Mesh, main
from hivemind.servers.trainer.admission import Admissions
from hivemind.servers.trainer.conductor import Conductor, Pace, Workshop
from hivemind.servers.trainer.executor_local import LocalExecutor, Machine
from hivemind.servers.trainer.jobs import Patience
from hivemind.servers.trainer.learner import LearnerDesk, Limits
from hivemind.servers.trainer.learner_folder import LearnerFolder
from hivemind.servers.trainer.learner_keeper import Household, LearnerKeeper, Terms
from hivemind.servers.trainer.learner_process import LearnerProcess
from hivemind.servers.trainer.learner_store import RedisLearners
from hivemind.servers.trainer.lesson import Entry
from hivemind.servers.trainer.metrics import LearnerMetrics, TrainerMetrics
from hivemind.servers.trainer.order import CPU, DEFAULT_ROLE, GPU, Lane
from hivemind.servers.trainer.registry_client import RegistryClient
from hivemind.servers.trainer.runs import Folders, LocalRuns
from hivemind.servers.trainer.service import TrainerService
from hivemind.servers.trainer.settings import TrainerSettings
from hivemind.servers.trainer.store_redis import RedisStore
from hivemind.v1 import trainer_pb2_grpc

JOB: Final = (sys.executable, "-m", "hivemind.training.sft_text")
LEARNER: Final = (sys.executable, "-m", "hivemind.training.online")
CHECK: Final = (sys.executable, "-m", "hivemind.training.sft_config", "--check")


def build(
    settings: TrainerSettings, *, job: Sequence[str] = JOB, check: Sequence[str] = CHECK,
    learner: Sequence[str] = LEARNER,
) -> Mesh:  # fmt: skip
    """Puts the Trainer together. `job` is the program of a job, `check` that of its configuration, `learner` that of
    the online learner."""
    redis = redis_client(settings.redis_url, timeout_s=settings.redis_timeout_s)
    store = RedisStore(redis, lease_s=settings.train_lease_s, max_queued=settings.train_max_queued)
    channel = peer_channel(settings.registry_address)
    registry = CollectorRegistry()
    refused = _RefusedTenants(settings)
    folders = Folders(settings.home.resolve(), settings.datasets.resolve(), settings.adapters.resolve())
    told = {
        **os.environ,
        "HIVEMIND_HOME": str(folders.home),
        "HIVEMIND_DATASETS": str(folders.datasets),
        "HIVEMIND_ADAPTERS": str(folders.adapters),
        "HIVEMIND_CONFIG": str(settings.config.resolve()),
    }
    runs = LocalRuns(folders, check=check, check_s=settings.train_check_s, environment=told, refused_tenants=refused)
    key = settings.api_key.get_secret_value() if settings.api_key is not None else None
    metrics = TrainerMetrics(registry)
    adapters = RegistryClient(channel, api_key=key, traffic=settings.challenger_traffic)
    shop = Workshop(store, LocalExecutor(folders.home, job, _machine(settings), told), runs, adapters, metrics)
    owner = new_request_id()
    conductor = Conductor(
        shop,
        owner=owner,
        pace=Pace(settings.train_poll_s, settings.train_room_s, settings.train_abandoned_s),
        patience=Patience(settings.train_max_crashes, settings.train_retry_s, settings.train_stall_s),
    )
    admissions = Admissions(
        store, runs, conductor, poll_s=settings.train_poll_s, patience_s=settings.train_watch_patience_s
    )
    learners = RedisLearners(redis, _learner_limits(settings))
    desk = LearnerDesk(learners, (DEFAULT_ROLE,), lambda: Entry(settings.learn_max_example_bytes, frozenset(refused())))
    service = TrainerService(admissions, store, desk)

    keeping = LearnerFolder(folders.home, DEFAULT_ROLE)
    process = LearnerProcess(keeping.path, (*learner, "--role", DEFAULT_ROLE), told, settings.learn_grace_s)
    keeper = LearnerKeeper(
        Household(learners, adapters, keeping, process, LearnerMetrics(registry, metrics)), _terms(settings),
        owner=owner, adapters=str(folders.adapters), missing=_missing(settings),
    )  # fmt: skip

    async def drain() -> None:
        await asyncio.gather(conductor.drain(), keeper.end())

    async def stop() -> None:
        await channel.close()
        await redis.aclose()

    return Mesh(
        name="trainer",
        service="hivemind.v1.TrainerService",
        add=lambda server: trainer_pb2_grpc.add_TrainerServiceServicer_to_server(service, server),
        registry=registry,
        run=(conductor.run, keeper.run, refused.watch.run),
        on_begin_drain=conductor.begin_drain,
        on_drain=drain,
        on_stop=stop,
    )


class _RefusedTenants:
    """The tenants of the catalogue that do not consent to training, as its file says by now."""

    def __init__(self, settings: TrainerSettings) -> None:
        try:
            self._catalogue = load_catalogue(settings.config, environment())
        except CatalogueError as error:
            sys.exit(f"trainer: {error}")
        self.watch = CatalogueWatch(settings.config, poll_s=1.0, on_change=self._take)

    def __call__(self) -> Sequence[str]:
        return sorted(self._catalogue.tenants_without_training)

    def _take(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue


def _missing(settings: TrainerSettings) -> str:
    """Why this Trainer runs no learner; empty: it does."""
    if not settings.learn:
        return "learning is turned off here (HIVEMIND_LEARN); examples are taken and wait"
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed; run make install-train, or pip install 'hivemind[train]'"
    return ""


def _terms(settings: TrainerSettings) -> Terms:
    return Terms(
        poll_s=settings.learn_poll_s,
        lease_s=settings.learn_lease_s,
        retry_s=settings.learn_retry_s,
        champion_s=settings.learn_champion_s,
        trial_s=settings.learn_trial_s,
        shadow=settings.learn_shadow,
    )


def _learner_limits(settings: TrainerSettings) -> Limits:
    of_tenant = max(1, round(settings.learn_inbox * settings.learn_inbox_share))
    return Limits(settings.learn_inbox, of_tenant, settings.learn_patience)


def _machine(settings: TrainerSettings) -> Machine:
    return Machine(
        cpu=Lane(CPU, settings.train_cpu_jobs, settings.train_cpu_price_per_hour_micros),
        gpu=Lane(GPU, settings.train_gpu_jobs, settings.train_gpu_price_per_hour_micros),
        gpu_free_mib=settings.train_gpu_free_mib,
        grace_s=settings.train_grace_s,
        niceness=settings.train_niceness,
    )


if __name__ == "__main__":
    main(TrainerSettings, "trainer", build)
