"""Composition root of the Router: `python -m hivemind.servers.router`."""

import random
import socket
import sys
import time
from dataclasses import dataclass

import orjson
from prometheus_client import CollectorRegistry

from hivemind.servers.common.catalogue import CatalogueError, environment, load_catalogue
from hivemind.servers.common.catalogue_watch import CatalogueWatch
from hivemind.servers.common.channels import peer_channel
from hivemind.servers.common.governor_client import GovernorClient
from hivemind.servers.common.interceptors import CallPolicy
from hivemind.servers.common.redis_client import redis_client
from hivemind.servers.common.server import Mesh, main
from hivemind.servers.common.spend import BudgetBook
from hivemind.servers.router.adapters import AdapterBook
from hivemind.servers.router.arbiter_client import ArbiterClient
from hivemind.servers.router.background import background_completions
from hivemind.servers.router.carrier import Carrier
from hivemind.servers.router.completion import Completions
from hivemind.servers.router.edge_server import EdgeServer
from hivemind.servers.router.example_book import ExampleBook
from hivemind.servers.router.feedback_store import RedisFeedbackStore
from hivemind.servers.router.fleet import Fleet
from hivemind.servers.router.gate.model import Gate
from hivemind.servers.router.governance import GovernorState
from hivemind.servers.router.judge import FlipRate
from hivemind.servers.router.known_domains import DomainBook
from hivemind.servers.router.learning import Learning
from hivemind.servers.router.likeness import Likeness
from hivemind.servers.router.metrics import RouterMetrics
from hivemind.servers.router.nomination import Nominator
from hivemind.servers.router.nominations import Nominations
from hivemind.servers.router.openai_edge import OpenAIEdge
from hivemind.servers.router.opinion_store import RedisOpinionStore
from hivemind.servers.router.orchestrator_client import OrchestratorClient
from hivemind.servers.router.outbox import NOMINATIONS, OUTCOMES, RedisOutbox
from hivemind.servers.router.platinum_client import PlatinumClient
from hivemind.servers.router.recall import Recall
from hivemind.servers.router.record_store import RedisRecordStore
from hivemind.servers.router.recorder import Recorder
from hivemind.servers.router.registry_client import RegistryClient
from hivemind.servers.router.sampling_store import RedisSamplingStore
from hivemind.servers.router.service import RouterService
from hivemind.servers.router.settings import RouterSettings
from hivemind.servers.router.shadow import Shadows
from hivemind.servers.router.skills import Skills
from hivemind.servers.router.upstream_http import HttpUpstream
from hivemind.v1 import common_pb2, router_pb2_grpc


@dataclass(slots=True)
class _Readiness:
    """The edge is ready as long as the Router does not drain."""

    draining: bool = False

    def __call__(self) -> tuple[bool, str]:
        return (not self.draining), "the Router is draining" if self.draining else "ready"


def build(settings: RouterSettings) -> Mesh:
    """Puts the Router together. It runs inside the event loop."""
    try:
        catalogue = load_catalogue(settings.config, environment())
    except CatalogueError as error:
        sys.exit(f"router: {error}")
    clock = time.monotonic
    registry = CollectorRegistry()
    metrics = RouterMetrics(registry)
    key = settings.api_key.get_secret_value() if settings.api_key is not None else None
    adapters = AdapterBook(settings.adapters.resolve())
    fleet = Fleet(catalogue, clock, adapters)
    redis = redis_client(settings.redis_url, timeout_s=settings.redis_timeout_s, connections=8)
    store = RedisRecordStore(
        redis, retention_s=settings.record_retention_s, conversations=settings.conversations,
        conversation_retention_s=settings.conversation_retention_s,
    )  # fmt: skip
    recorder = Recorder(store, flush_s=settings.record_flush_s, on_drop=metrics.records_dropped.inc)
    channel = peer_channel(settings.governor_address)
    state = GovernorState(clock)
    governor = GovernorClient(channel, state, server="router", purpose=common_pb2.SERVING, api_key=key)
    budgets = BudgetBook(governor, view=lambda: state.view, clock=clock)
    upstream = HttpUpstream(connections=settings.upstream_connections)
    feedback = RedisFeedbackStore(redis, retention_s=settings.record_retention_s)
    skills, domains = Skills(), DomainBook()
    rng, flips = random.Random(), FlipRate(metrics.judge_flips.set)
    arbiter_channel = peer_channel(settings.arbiter_address)
    arbiter = ArbiterClient(arbiter_channel, api_key=key, clock=clock)
    registry_channel = peer_channel(settings.registry_address)
    adapter_registry = RegistryClient(registry_channel, adapters, api_key=key)
    orchestrator_channel = peer_channel(settings.orchestrator_address)
    orchestrator = OrchestratorClient(orchestrator_channel, domains, api_key=key)
    name = f"{socket.gethostname()}:{settings.grpc_port}"
    nominations = Nominations(store, arbiter, on_lost=metrics.nominations_lost.inc)
    outcomes = RedisOutbox(redis, OUTCOMES, router=name)
    to_registry = Carrier(outcomes, adapter_registry.deliver)
    to_arbiter = Carrier(RedisOutbox(redis, NOMINATIONS, router=name), nominations.deliver)
    refining = GovernorClient(channel, state, server="router", purpose=common_pb2.REFINEMENT, api_key=key)
    refinement_budgets = BudgetBook(refining, view=lambda: state.refinement, clock=clock)
    shadows = Shadows(
        background_completions(fleet, upstream, refinement_budgets, state, clock=clock), refinement_budgets,
        flips=flips, clock=clock, allowed=lambda: state.refining,
        tell=lambda found: outcomes.put([orjson.dumps(o) for o in found]),
    )  # fmt: skip
    learning = Learning(
        Nominator(settings.nominate, rng),
        consents=lambda tenant: tenant not in fleet.catalogue.tenants_without_training,
        shadow=shadows.consider,
    )
    gate, book = Gate(), ExampleBook(clock)
    metrics.examples_held.set_function(lambda: len(book))
    platinum = PlatinumClient(
        arbiter_channel, book, Likeness(gate.table), api_key=key,
        wanted=lambda: any(policy.examples for policy in fleet.catalogue.policies.values()),
    )  # fmt: skip
    completions = Completions(
        fleet=fleet,
        upstream=upstream,
        budgets=budgets,
        recorder=recorder,
        entry=learning.entry,
        governance=state,
        metrics=metrics,
        clock=clock,
        gate=gate,
        flips=flips,
        explore=settings.explore,
        rng=rng,
        skill=skills.of,
        known=domains.of,
        recall=Recall(book, lambda tenant: tenant not in fleet.catalogue.tenants_without_training, metrics),
    )
    readiness = _Readiness()
    policy = CallPolicy(key, settings.deadline_s, settings.max_in_flight)
    edge = OpenAIEdge(
        completions, arbiter, policy=policy, max_body=settings.max_body, metrics=metrics, ready=readiness, clock=clock
    )
    server = EdgeServer(edge, host=settings.host, port=settings.http_port)
    watch = CatalogueWatch(settings.config, poll_s=settings.catalogue_poll_s, on_change=fleet.replace)
    opinions = RedisOpinionStore(redis)
    sampling = RedisSamplingStore(
        redis, consents=lambda tenant: tenant not in fleet.catalogue.tenants_without_training,
        kept_s=settings.conversation_retention_s,
    )  # fmt: skip
    service = RouterService(completions, store, recorder, feedback, arbiter, opinions, sampling, clock=clock)

    async def on_stop() -> None:
        await shadows.close()
        await budgets.close()
        await refinement_budgets.close()
        await recorder.flush()
        await upstream.close()
        await channel.close()
        await arbiter_channel.close()
        await registry_channel.close()
        await orchestrator_channel.close()
        await redis.aclose()

    def begin_drain() -> None:
        readiness.draining = True

    return Mesh(
        name="router",
        service="hivemind.v1.RouterService",
        add=lambda grpc_server: router_pb2_grpc.add_RouterServiceServicer_to_server(service, grpc_server),
        registry=registry,
        run=(
            server.run,
            recorder.run,
            to_arbiter.run,
            to_registry.run,
            adapter_registry.watch,
            orchestrator.watch,
            platinum.watch,
            governor.watch,
            watch.run,
            lambda: budgets.run(settings.spend_flush_s),
            lambda: refinement_budgets.run(settings.spend_flush_s),
            lambda: feedback.follow(skills, settings.skills_poll_s),
        ),
        on_begin_drain=begin_drain,
        on_drain=server.stop,
        on_stop=on_stop,
    )


if __name__ == "__main__":
    main(RouterSettings, "router", build)
