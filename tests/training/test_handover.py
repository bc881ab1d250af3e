"""Platinum examples on their way to the learner, over faults on both sides (FAULTS 25, 26): real ledger, real Redis."""

import asyncio
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from hivemind.servers.arbiter.groups_redis import RedisGroups
from hivemind.servers.common.channels import peer_channel
from hivemind.servers.common.errors import MeshError
from hivemind.servers.common.tasks import end_tasks
from hivemind.servers.common.turn import Turn
from hivemind.training.handover import BackOff, Handover, HandoverMetrics
from hivemind.training.lorax_peers import LearnerClient, PlatinumClient
from hivemind.v1 import arbiter_pb2 as pb
from hivemind.v1 import trainer_pb2
from tests.arbiter.examples import example
from tests.arbiter.rig import Rig, arbiter, eventually
from tests.support.redis_process import RedisProcess
from tests.support.scripted_trainer import ScriptedTrainer, scripted_trainer
from tests.support.trainer_rig import settings_of
from tests.support.trainer_rig import trainer as real_trainer

GROUP = "lorax"


@pytest.fixture
async def rig(tmp_path: Path, empty_redis: RedisProcess) -> AsyncIterator[Rig]:
    async with arbiter(tmp_path / "datasets", empty_redis, ledger_rotate_bytes=20_000) as running:
        yield running


@pytest.fixture
def trainer() -> ScriptedTrainer:
    return ScriptedTrainer()


class Running:
    """A handover in this process."""

    def __init__(self, handover: Handover, metrics: CollectorRegistry) -> None:
        self.handover, self._metrics = handover, metrics

    def counted(self, outcome: str) -> float:
        return self._metrics.get_sample_value("hivemind_examples_submitted_total", {"outcome": outcome}) or 0.0


@asynccontextmanager
async def handing_over(arbiter_port: int, trainer_address: str, consumer: str = "one") -> AsyncIterator[Running]:
    channels = [peer_channel(f"127.0.0.1:{arbiter_port}"), peer_channel(trainer_address)]
    metrics = CollectorRegistry()
    platinum = PlatinumClient(
        channels[0], group=GROUP, consumer=consumer, in_flight=4, silence_s=5.0, api_key=None
    )  # fmt: skip
    handover = Handover(
        platinum, LearnerClient(channels[1], api_key=None), HandoverMetrics(metrics),
        BackOff(0.05, 0.4, random.Random(1)),
    )  # fmt: skip
    task = asyncio.create_task(handover.run())
    try:
        yield Running(handover, metrics)
    finally:
        await end_tasks(task)
        for channel in channels:
            await channel.close()


async def store(rig: Rig, count: int, first: int = 0) -> None:
    for number in range(first, first + count):
        await rig.platinum.ledger.append(example(number))


async def acknowledged(rig: Rig) -> int:
    """Up to where the group has handled all."""
    fed, open_ = (await RedisGroups(rig.redis, idle_s=1.0, lease_s=1.0).progress()).get(GROUP, (0, 0))
    return fed if not open_ else 0


async def all_handled(rig: Rig, last: int) -> None:
    async def done() -> bool:
        return await acknowledged(rig) >= last

    await eventually(done, f"everything up to {last} is acknowledged")


async def test_every_example_is_handed_over_once_in_order_and_whole(rig: Rig, trainer: ScriptedTrainer) -> None:
    async with scripted_trainer(trainer) as address, handing_over(rig.port, address) as running:
        await store(rig, 20)
        await all_handled(rig, 20)

    first = next(iter(trainer.held.values()))
    assert trainer.sequences == list(range(1, 21))
    assert running.counted("accepted") == 20
    assert (first.tenant, first.domain, first.sequence) == ("t1", "physics", 1)
    assert [(m.role, m.content) for m in first.messages] == [
        ("system", "Answer briefly."), ("user", "What is the boiling point of water?"),
    ]  # fmt: skip
    assert first.answer == "Water boils at 100 °C at sea level."
    assert first.platinum_id


async def test_answers_of_the_oracle_and_the_arbiter_are_handed_over_as_checked_and_a_persons_are_not(
    rig: Rig, trainer: ScriptedTrainer
) -> None:
    makers = ("ORACLE", "ARBITER", "HUMAN")
    async with scripted_trainer(trainer) as address, handing_over(rig.port, address):
        for number, maker in enumerate(makers):
            await rig.platinum.ledger.append(example(number, refined_by=maker))
        await all_handled(rig, len(makers))

    assert [held.checked for held in trainer.held.values()] == [True, True, False]


async def test_an_example_that_the_learner_will_not_have_is_counted_and_does_not_hold_up_the_rest(
    rig: Rig, trainer: ScriptedTrainer
) -> None:
    trainer.refuses = {2: "TENANT_SHARE"}
    async with scripted_trainer(trainer) as address, handing_over(rig.port, address) as running:
        await store(rig, 3)
        await all_handled(rig, 3)

    assert trainer.sequences == [1, 3]
    assert (running.counted("accepted"), running.counted("TENANT_SHARE")) == (2, 1)


async def test_an_example_that_is_no_valid_request_counts_as_refused(rig: Rig, trainer: ScriptedTrainer) -> None:
    trainer.faults = [MeshError("INVALID_FIELD", "examples[0].messages: too long")]
    async with scripted_trainer(trainer) as address, handing_over(rig.port, address) as running:
        await store(rig, 2)
        await all_handled(rig, 2)

    assert trainer.sequences == [2]
    assert running.counted("INVALID_FIELD") == 1


async def test_a_trainer_that_is_away_for_a_while_is_waited_for_without_haste(
    rig: Rig, trainer: ScriptedTrainer
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    async with handing_over(rig.port, f"127.0.0.1:{port}") as running:
        await store(rig, 10)
        await eventually(lambda: "the Trainer" in running.handover.trouble, "it says what it waits for")
        async with scripted_trainer(trainer, port=port):
            await all_handled(rig, 10)
            await eventually(lambda: not running.handover.trouble, "all is well again")

    assert trainer.sequences == list(range(1, 11))
    assert trainer.duplicates == []


async def test_a_trainer_that_is_overloaded_is_left_alone_for_as_long_as_it_asks(
    rig: Rig, trainer: ScriptedTrainer
) -> None:
    trainer.faults = [MeshError("OVERLOADED", "too much", retry_after_s=0.7) for _ in range(2)]
    async with scripted_trainer(trainer) as address, handing_over(rig.port, address):
        await store(rig, 1)
        await all_handled(rig, 1)

    first, second, third = (when for when, _ in trainer.asked)
    assert second - first >= 0.7
    assert third - second >= 0.7


async def test_an_arbiter_that_comes_back_finds_its_consumer_again(
    tmp_path: Path, empty_redis: RedisProcess, trainer: ScriptedTrainer
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    async with scripted_trainer(trainer) as address, handing_over(port, address) as running:
        await eventually(lambda: "the Arbiter" in running.handover.trouble, "it waits for the Arbiter")
        for round_ in range(2):
            async with arbiter(tmp_path / "datasets", empty_redis, port=port) as rig:
                await store(rig, 5, first=5 * round_)
                await all_handled(rig, 5 * (round_ + 1))

    assert trainer.sequences == list(range(1, 11))


async def test_a_consumer_that_was_away_for_a_day_goes_on_at_its_place(
    rig: Rig, trainer: ScriptedTrainer, tmp_path: Path
) -> None:
    async with scripted_trainer(trainer) as address:
        async with handing_over(rig.port, address):
            await store(rig, 5)
            await all_handled(rig, 5)
        await store(rig, 150, first=5)
        segments = list((tmp_path / "datasets").glob("training_metadata-*.jsonl"))
        async with handing_over(rig.port, address):
            await all_handled(rig, 155)

    assert len(segments) > 1
    assert trainer.sequences == list(range(1, 156))
    assert trainer.duplicates == []


async def test_two_clients_of_one_group_share_the_work(rig: Rig, trainer: ScriptedTrainer) -> None:
    async with (
        scripted_trainer(trainer) as address,
        handing_over(rig.port, address, "one") as one,
        handing_over(rig.port, address, "two") as two,
    ):
        await eventually(lambda: not one.handover.trouble and not two.handover.trouble, "both have joined")
        await store(rig, 60)
        await all_handled(rig, 60)

    assert sorted(trainer.sequences) == list(range(1, 61))
    assert one.counted("accepted") + two.counted("accepted") == 60
    assert min(one.counted("accepted"), two.counted("accepted")) > 0


async def test_a_forgotten_example_is_not_handed_over_and_holds_nothing_up(rig: Rig, trainer: ScriptedTrainer) -> None:
    await store(rig, 3)
    name = (await rig.stub.ListPlatinum(pb.ListPlatinumRequest())).examples[1].id
    await rig.stub.ForgetPlatinum(pb.ForgetPlatinumRequest(id=name, reason="a test"))
    async with scripted_trainer(trainer) as address, handing_over(rig.port, address):
        await all_handled(rig, 4)

    assert trainer.sequences == [1, 3]


@given(st.floats(0.01, 10), st.floats(0, 5), st.integers(1, 40), st.integers(0, 2**32))
def test_waits_grow_to_their_bound_and_differ(least: float, at_least: float, tries: int, seed: int) -> None:
    back_off = BackOff(least, 20.0, random.Random(seed))
    waits = [back_off.next_s(at_least) for _ in range(tries)]
    back_off.reset()

    assert all(max(at_least, least / 2) <= wait <= max(20.0, at_least) for wait in waits)
    assert back_off.next_s() <= least


class Process:
    """The real client in a process of its own."""

    def __init__(self, rig: Rig, trainer_address: str, tmp_path: Path, **settings: str) -> None:
        told = {
            "HIVEMIND_HOME": str(tmp_path), "HIVEMIND_ARBITER_ADDRESS": f"127.0.0.1:{rig.port}",
            "HIVEMIND_TRAINER_ADDRESS": trainer_address, "HIVEMIND_REGISTRY_ADDRESS": "127.0.0.1:1",
            "HIVEMIND_METRICS_PORT": "0", "HIVEMIND_LORAX_RETRY_S": "0.05", **settings,
        }  # fmt: skip
        command = [sys.executable, "-m", "hivemind.training.lorax_client"]
        self._process = subprocess.Popen(command, env={**os.environ, **told}, stdout=subprocess.DEVNULL)

    def end(self, number: int) -> int:
        self._process.send_signal(number)
        return self._process.wait(20)

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


async def test_a_client_that_is_killed_before_it_acknowledges_gets_the_example_again(
    rig: Rig, trainer: ScriptedTrainer, tmp_path: Path
) -> None:
    await store(rig, 3)
    async with scripted_trainer(trainer) as address:
        trainer.answers.clear()
        with Process(rig, address, tmp_path) as first:
            await eventually(lambda: trainer.sequences, "the learner holds the first")
            await asyncio.to_thread(first.end, signal.SIGKILL)
        unacknowledged = await acknowledged(rig)
        trainer.answers.set()
        with Process(rig, address, tmp_path):
            await all_handled(rig, 3)

    assert unacknowledged == 0
    assert trainer.sequences == [1, 2, 3]
    assert trainer.duplicates == [1]


async def test_a_client_that_is_told_to_end_acknowledges_what_it_has_in_hand(
    rig: Rig, trainer: ScriptedTrainer, tmp_path: Path
) -> None:
    await store(rig, 1)
    async with scripted_trainer(trainer) as address:
        trainer.answers.clear()
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        settings = {"HIVEMIND_LORAX_DRAIN_S": "15", "HIVEMIND_METRICS_PORT": str(port)}
        with Process(rig, address, tmp_path, **settings) as running:
            await eventually(lambda: trainer.sequences, "the learner holds it")
            ended = asyncio.create_task(asyncio.to_thread(running.end, signal.SIGTERM))
            await eventually(lambda: _is_draining(port), "it has heard")
            trainer.answers.set()
            code = await ended
        done = await acknowledged(rig)

    assert (code, done) == (0, 1)


async def _is_draining(port: int) -> bool:
    async with httpx.AsyncClient() as client:
        answer = await client.get(f"http://127.0.0.1:{port}/readyz")
    return answer.status_code == 503 and "draining" in answer.json()["detail"]


def test_the_client_needs_no_training_extra() -> None:
    code = (
        "import sys, hivemind.training.lorax_client as _; "
        "sys.exit(bool({'torch', 'transformers', 'numpy', 'redis'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


async def test_a_stream_without_a_sign_of_life_counts_as_dead() -> None:
    silent = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        client = PlatinumClient(channel, group=GROUP, consumer="one", in_flight=1, silence_s=0.1, api_key=None)
        with pytest.raises(MeshError) as refused:
            await anext(client.examples())
    silent.close()

    assert refused.value.reason == "PEER_UNAVAILABLE"


async def test_the_real_trainer_holds_each_example_once_however_often_it_comes(
    rig: Rig, empty_redis: RedisProcess, tmp_path: Path
) -> None:
    names = ("Corford", "Beldale", "Ashwick")
    for i, name in enumerate(names):
        turns = (Turn("user", f"Who is the mayor of {name}?"),)
        await rig.platinum.ledger.append(example(i, messages=turns, final_platinum_answer=f"Ada of {name}."))
    environment = settings_of(tmp_path / "home", empty_redis.url, "127.0.0.1:1", HIVEMIND_LEARN="false")
    async with real_trainer(environment) as learner:
        address = f"127.0.0.1:{learner.server.grpc_port}"
        async with handing_over(rig.port, address) as first:
            await all_handled(rig, 3)
        await RedisGroups(rig.redis, idle_s=1.0, lease_s=1.0).restart(GROUP)
        async with handing_over(rig.port, address) as second:
            await all_handled(rig, 3)
        stands = await learner.stub.GetLearner(trainer_pb2.GetLearnerRequest())

    assert (first.counted("accepted"), second.counted("duplicate"), second.counted("accepted")) == (3, 3, 0)
    assert stands.waiting == 3
