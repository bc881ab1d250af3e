"""How long a publication takes until every replica holds it: the rule, and seen against a real registry."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from hivemind.servers.adapter_registry.base_model import BaseModel, read_gguf
from hivemind.servers.adapter_registry.ports import ReplicaState
from hivemind.servers.common.channels import peer_channel
from hivemind.servers.common.courier import WHEEL_SHA256, wheel_file
from hivemind.servers.common.tasks import end_tasks
from hivemind.servers.common.translate import timestamp
from hivemind.training.freshness import Freshness, Late, Publication, Replica, Served
from hivemind.training.lorax_client import Publications
from hivemind.training.lorax_peers import LearnerClient, StateClient
from hivemind.v1 import trainer_pb2 as pb
from tests.arbiter.rig import eventually
from tests.support.redis_process import RedisProcess
from tests.support.registry import ROLE, Rig, running_registry
from tests.support.scripted_trainer import ScriptedTrainer, scripted_trainer

OLD, ONE, TWO = (f"implementer-v00000{i}" for i in range(3))


def replica(*adapters: str, name: str = "a", healthy: bool = True) -> Replica:
    return Replica(name, healthy, frozenset(adapters), "is being loaded")


@pytest.fixture
def freshness() -> Freshness:
    """Of a learner that had published before it was first asked."""
    made = Freshness(60.0)
    assert made.publish(Publication(OLD, 1.0)) == []
    return made


def test_it_is_the_time_from_the_closed_batch_to_the_last_replica(freshness: Freshness) -> None:
    freshness.publish(Publication(ONE, 100.0))

    first = freshness.hold([replica(ONE), replica(name="b")], [ONE, OLD], 110.0)
    second = freshness.hold([replica(ONE), replica(ONE, name="b")], [ONE, OLD], 130.0)

    assert first == []
    assert second == [Served(ONE, ONE, 30.0)]
    assert freshness.hold([replica(ONE)], [ONE, OLD], 140.0) == []


def test_replicas_may_hold_a_version_before_the_learner_tells_of_it(freshness: Freshness) -> None:
    freshness.hold([replica(ONE)], [ONE], 110.0)

    assert freshness.publish(Publication(ONE, 100.0)) == [Served(ONE, ONE, 10.0)]


def test_a_later_version_serves_the_batches_of_earlier_ones(freshness: Freshness) -> None:
    freshness.publish(Publication(ONE, 100.0))
    freshness.publish(Publication(TWO, 150.0))

    assert freshness.hold([replica(TWO)], [TWO, ONE], 160.0) == [Served(ONE, TWO, 60.0), Served(TWO, TWO, 10.0)]


def test_a_version_without_a_new_batch_serves_those_before_it_and_has_no_freshness_of_its_own(
    freshness: Freshness,
) -> None:
    freshness.publish(Publication(ONE, 100.0))
    freshness.publish(Publication(TWO, None))

    assert [late.adapter_id for late in freshness.late(1000.0)] == [ONE]
    assert freshness.hold([replica(TWO)], [TWO, ONE], 130.0) == [Served(ONE, TWO, 30.0)]


def test_what_was_published_before_anybody_looked_does_not_count() -> None:
    freshness = Freshness(60.0)
    freshness.publish(Publication(OLD, 1.0))

    assert freshness.hold([replica(OLD)], [OLD], 5000.0) == []


def test_the_first_publication_of_a_learner_counts() -> None:
    freshness = Freshness(60.0)
    freshness.publish(None)
    freshness.publish(Publication(ONE, 100.0))

    assert freshness.hold([replica(ONE)], [ONE], 101.0) == [Served(ONE, ONE, 1.0)]


def test_replicas_come_and_go(freshness: Freshness) -> None:
    freshness.publish(Publication(ONE, 100.0))
    nobody = freshness.hold([replica(healthy=False)], [ONE], 105.0)
    joined = freshness.hold([replica(ONE, healthy=False), replica(name="b")], [ONE], 110.0)
    left = freshness.hold([replica(ONE)], [ONE], 120.0)

    assert (nobody, joined, left) == ([], [], [Served(ONE, ONE, 20.0)])


def test_a_late_publication_is_told_once_with_the_replicas_that_lack_it(freshness: Freshness) -> None:
    freshness.publish(Publication(ONE, 100.0))
    freshness.hold([replica(ONE), replica(name="b")], [ONE], 110.0)

    assert freshness.late(160.0) == []
    assert freshness.late(161.0) == [Late(ONE, 61.0, ("b: is being loaded",))]
    assert freshness.late(162.0) == []


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return read_gguf("courier", wheel_file(), sha256=WHEEL_SHA256)


class Held:
    """What the replicas hold, as a test says."""

    def __init__(self) -> None:
        self.states: tuple[ReplicaState, ...] = ()

    def replicas(self, role: str) -> tuple[ReplicaState, ...]:
        return self.states if role == ROLE else ()


@pytest.fixture
async def seen(empty_redis: RedisProcess, tmp_path: Path, base: BaseModel) -> AsyncIterator[tuple[Rig, Held]]:
    held = Held()
    async with running_registry(empty_redis, tmp_path, base, replicas=held) as rig:
        yield rig, held


async def test_freshness_is_observed_when_the_last_replica_of_a_real_registry_holds_it(seen: tuple[Rig, Held]) -> None:
    rig, held = seen
    trainer, metrics, time = ScriptedTrainer(), CollectorRegistry(), [1000.0]
    adapter = (await rig.register()).id

    def count() -> float:
        return metrics.get_sample_value("hivemind_freshness_seconds_count") or 0.0

    async with scripted_trainer(trainer) as address:
        channel = peer_channel(address)
        publications = Publications(
            LearnerClient(channel, api_key=None), StateClient(rig.channel, api_key=None), metrics,
            look_s=0.02, late_s=60.0, now=lambda: time[0],
        )  # fmt: skip
        tasks = [asyncio.create_task(t) for t in (publications.watch(), publications.ask())]
        held.states = (ReplicaState("a", (adapter,), True, ""), ReplicaState("b", (), True, "is being loaded"))
        await eventually(lambda: trainer.learner_asked, "the learner was asked")
        trainer.learner = pb.OnlineLearner(
            state=pb.OnlineLearner.WAITING, adapter_id=adapter, batch_close_time=timestamp(990.0)
        )
        asked = trainer.learner_asked
        await eventually(lambda: trainer.learner_asked > asked + 1, "it was asked again")
        before = count()
        time[0] = 1015.0
        held.states = (ReplicaState("a", (adapter,), True, ""), ReplicaState("b", (adapter,), True, ""))
        await eventually(count, "it is observed")
        await end_tasks(*tasks)
        await channel.close()

    assert before == 0
    assert metrics.get_sample_value("hivemind_freshness_seconds_sum") == pytest.approx(25.0)


STEPS = st.lists(
    st.one_of(
        st.just("publish"),
        st.lists(st.tuples(st.sampled_from("ab"), st.booleans(), st.sets(st.integers(1, 6))), max_size=3),
    ),
    max_size=30,
)


@given(STEPS)
def test_every_publication_is_served_once_at_most_and_never_before_all_hold_it_or_a_later_one(steps: list[Any]) -> None:
    freshness, published, served = Freshness(60.0), 0, list[Served]()
    freshness.publish(None)
    for now, step in enumerate(steps, start=1):
        if step == "publish" and published < 6:
            published += 1
            served += freshness.publish(Publication(f"v{published}", float(now)))
        elif step != "publish":
            replicas = [Replica(name, healthy, frozenset(f"v{i}" for i in held)) for name, healthy, held in step]
            new = freshness.hold(replicas, [f"v{i}" for i in range(6, 0, -1)], float(now))
            holding = [r.adapters for r in replicas if r.healthy]
            assert all(holding and all(n.by in held for held in holding) for n in new)
            served += new

    names = [s.adapter_id for s in served]
    assert len(set(names)) == len(names)
    assert names == sorted(names)
    assert all(s.by >= s.adapter_id and s.seconds >= 0 for s in served)
