"""Puts the refining side of the Arbiter together: models, money, queue, workers and their loops."""

import asyncio
import random
import secrets
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from hivemind.servers.arbiter.acceptance import Rule
from hivemind.servers.arbiter.governance import Governance
from hivemind.servers.arbiter.ledger import Ledger
from hivemind.servers.arbiter.metrics import RefinementMetrics
from hivemind.servers.arbiter.nomination import Nominations
from hivemind.servers.arbiter.openai_models import OpenAIModels
from hivemind.servers.arbiter.paid_calls import Purse
from hivemind.servers.arbiter.queue_redis import Bounds, RedisQueue
from hivemind.servers.arbiter.refinement import Refinery, Setting
from hivemind.servers.arbiter.settings import ArbiterSettings
from hivemind.servers.arbiter.workers import Pace, Workers
from hivemind.servers.common.catalogue import Catalogue
from hivemind.servers.common.catalogue_watch import CatalogueWatch
from hivemind.servers.common.channels import peer_channel
from hivemind.servers.common.errors import MeshError
from hivemind.servers.common.governor_client import GovernorClient
from hivemind.servers.common.spend import BudgetBook
from hivemind.v1 import common_pb2

QUEUE_SHOWN_EVERY_S = 1.0
LEDGER_TRIED_EVERY_S = 1.0


@dataclass(slots=True)
class _CatalogueInForce:
    catalogue: Catalogue

    def replace(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue


@dataclass(frozen=True, slots=True)
class Refining:
    """What refines, as one server has it. `run`: loops for the server's lifetime; `close`: after they have ended."""

    refinery: Refinery
    nominations: Nominations
    queue: RedisQueue
    governance: Governance
    run: tuple[Callable[[], Awaitable[None]], ...]
    close: Callable[[], Awaitable[None]]


def build_refining(
    settings: ArbiterSettings, catalogue: Catalogue, redis: Redis, registry: CollectorRegistry, ledger: Ledger
) -> Refining:
    """Made with the server, inside the event loop."""
    key = settings.api_key.get_secret_value() if settings.api_key is not None else None
    in_force = _CatalogueInForce(catalogue)
    metrics, governance, models = RefinementMetrics(registry), Governance(), OpenAIModels()
    channel = peer_channel(settings.governor_address)
    governor = GovernorClient(channel, governance, server="arbiter", purpose=common_pb2.REFINEMENT, api_key=key)
    budgets = BudgetBook(governor, view=lambda: governance.view, clock=time.monotonic)
    purse = Purse(models, budgets, governance.allowed, governance.tenant_label, metrics, time.monotonic)
    setting = Setting(
        catalogue=lambda: in_force.catalogue,
        ledger=ledger,
        purse=purse,
        allowed=governance.first_allowed,
        counting=metrics,
        rule=Rule(settings.refinement_least_score),
        boundary=lambda: secrets.token_hex(8),
        clock=time.monotonic,
    )
    refinery = Refinery(setting)
    queue = RedisQueue(redis, _bounds(settings), on_drop=metrics.dropped.inc)
    workers = Workers(queue, refinery, governance, _pace(settings), rng=random.Random(), clock=time.monotonic)
    watch = CatalogueWatch(settings.config, poll_s=settings.catalogue_poll_s, on_change=in_force.replace)

    async def work() -> None:
        await _opened(ledger)  # before that it does not know which candidates are stored already
        await workers.run()

    async def show_queue() -> None:
        while True:
            with suppress(MeshError):  # the workers report a lost store
                metrics.queue.set((await queue.counts())[0])
            await asyncio.sleep(QUEUE_SHOWN_EVERY_S)

    async def close() -> None:
        await budgets.close()
        await models.close()
        await channel.close()

    loops = (governor.watch, watch.run, work, show_queue, lambda: budgets.run(settings.spend_flush_s))
    return Refining(refinery, Nominations(refinery, queue, metrics.dropped.inc), queue, governance, loops, close)


async def _opened(ledger: Ledger) -> None:
    while True:
        try:
            await ledger.refresh()
            return
        except MeshError:  # the ledger's own loop reports it
            await asyncio.sleep(LEDGER_TRIED_EVERY_S)


def _bounds(settings: ArbiterSettings) -> Bounds:
    return Bounds(
        candidates=settings.queue_bound,
        of_tenant=max(1, int(settings.queue_bound * settings.queue_tenant_share)),
        seen_s=settings.queue_seen_s,
        lease_s=settings.refinement_lease_s,
    )


def _pace(settings: ArbiterSettings) -> Pace:
    return Pace(
        concurrency=settings.refinement_concurrency,
        per_minute=settings.refinements_per_minute,
        poll_s=settings.refinement_poll_s,
        renew_s=settings.refinement_lease_s / 3,
    )
