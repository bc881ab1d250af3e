"""The steps that have learning done, against a scripted and a real Trainer."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from hivemind.servers.common.errors import MeshError
from hivemind.servers.orchestrator.cycle import Result
from hivemind.servers.orchestrator.learning import OnlineLearner, Train
from hivemind.servers.orchestrator.ports import Policy
from hivemind.servers.orchestrator.steps import PublishOnline
from hivemind.servers.orchestrator.trainer_client import TrainerClient
from hivemind.v1 import trainer_pb2 as pb
from tests.orchestrator.ledgers import opened, store
from tests.orchestrator.rig import ROLE, Rig, rig
from tests.support.redis_process import RedisProcess
from tests.support.scripted_trainer import ScriptedTrainer, scripted_trainer
from tests.support.trainer_rig import settings_of, trainer

ON = Policy(frozenset({ROLE}), 0.0, 2)
State = pb.OnlineLearner


@pytest.fixture
async def running(empty_redis: RedisProcess, tmp_path: Path) -> AsyncIterator[Rig]:
    async with rig(empty_redis, tmp_path) as made:
        yield made


@pytest.fixture
def scripted() -> ScriptedTrainer:
    return ScriptedTrainer()


@asynccontextmanager
async def client_of(scripted: ScriptedTrainer) -> AsyncIterator[TrainerClient]:
    async with scripted_trainer(scripted) as address, grpc.aio.insecure_channel(address) as channel:
        yield TrainerClient(channel, api_key=None, max_duration_s=600.0, max_cost_micros=5_000)


async def test_what_was_published_since_the_last_cycle_is_told(running: Rig, scripted: ScriptedTrainer) -> None:
    notes = []
    async with client_of(scripted) as client:
        step = PublishOnline(OnlineLearner(client))
        for published, refused in ((3, 0), (3, 1), (5, 1)):
            scripted.learner = pb.OnlineLearner(
                state=State.WAITING, published=published, refused=refused, waiting=2, learnt=9,
                adapter_id="implementer-v000007", note="all quiet",
            )  # fmt: skip
            notes.append(await step.run(running.lease.token))

    waits = "2 examples wait, 9 were learnt"
    assert notes == [
        Result("SKIPPED", f"nothing new was published; {waits} (all quiet)"),
        Result("SKIPPED", f"nothing new was published; {waits}; the gate refused 1 (all quiet)"),
        Result("DONE", f"2 published since the last cycle, the last implementer-v000007; {waits}"),
    ]
    assert [request.fencing_token for request in scripted.drained] == [1, 1, 1]


@pytest.mark.parametrize(
    ("state", "waiting", "drains"), [(State.WAITING, 2, 1), (State.WAITING, 0, 0), (State.LEARNING, 2, 0)]
)
async def test_only_a_learner_that_waits_for_more_is_told_that_these_are_all(
    running: Rig, scripted: ScriptedTrainer, state: State.State, waiting: int, drains: int
) -> None:
    scripted.learner = pb.OnlineLearner(state=state, waiting=waiting)
    async with client_of(scripted) as client:
        await PublishOnline(OnlineLearner(client)).run(running.lease.token)

    assert len(scripted.drained) == drains


async def test_a_learner_that_is_not_there_is_no_failure_of_the_loop(running: Rig, scripted: ScriptedTrainer) -> None:
    scripted.learner = pb.OnlineLearner(state=State.UNAVAILABLE, note="the extra `train` is not installed")
    async with client_of(scripted) as client:
        result = await PublishOnline(OnlineLearner(client)).run(running.lease.token)

    assert result == Result("SKIPPED", "the online learner is not there: the extra `train` is not installed")


async def test_a_trainer_that_is_away_is_an_error_of_the_step(running: Rig) -> None:
    async with grpc.aio.insecure_channel("127.0.0.1:1") as channel:
        client = TrainerClient(channel, api_key=None, max_duration_s=0.0, max_cost_micros=0)
        with pytest.raises(MeshError) as refused:
            await PublishOnline(OnlineLearner(client)).run(running.lease.token)

    assert refused.value.reason == "PEER_UNAVAILABLE"


async def test_the_real_trainer_refuses_a_leader_that_was_followed(
    running: Rig, empty_redis: RedisProcess, tmp_path: Path
) -> None:
    environment = settings_of(tmp_path / "trainer", empty_redis.url, "127.0.0.1:1", HIVEMIND_LEARN="false")
    async with trainer(environment) as real:
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{real.server.grpc_port}")
        client = TrainerClient(channel, api_key=None, max_duration_s=0.0, max_cost_micros=0)
        newer = await client.drain(7)
        with pytest.raises(MeshError) as refused:
            await client.drain(6)
        with pytest.raises(MeshError) as job_refused:
            await client.start(ROLE, key="k", token=6)
        await channel.close()

    assert newer.state == "UNAVAILABLE"
    assert refused.value.reason == "STALE_FENCING_TOKEN"
    assert job_refused.value.reason == "STALE_FENCING_TOKEN"


def train(running: Rig, client: TrainerClient, every: int = 3, policy: Policy = ON) -> Train:
    return Train(client, running.keeper, policy, every)


async def grown(running: Rig, lines: int) -> None:
    files = opened(running.datasets)
    for _ in range(lines):
        store(files, "facts", 0.5)
    await running.mapped()


def job(state: str, last: int = 0, name: str = "j", error: str = "") -> pb.TrainingJob:
    return pb.TrainingJob(id=name, role=ROLE, state=pb.TrainingJob.State.Value(state), last_sequence=last, error=error)


async def test_a_job_is_started_when_enough_has_come_since_the_last_one(
    running: Rig, scripted: ScriptedTrainer
) -> None:
    scripted.jobs = [job("FAILED"), job("SUCCEEDED", 4), job("SUCCEEDED", 9, name="older")]
    async with client_of(scripted) as client:
        await grown(running, 6)
        early = await train(running, client).run(running.lease.token)
        await grown(running, 2)
        due = await train(running, client).run(running.lease.token)

    (order,) = scripted.ordered
    assert early == Result("SKIPPED", f"{ROLE}: 2 lines since the last job, 3 are waited for")
    assert due == Result("DONE", f"{ROLE}: job job-1 started, 4 lines since the last one")
    assert (order.role, order.fencing_token, order.max_cost_micros) == (ROLE, 1, 5_000)
    assert order.max_duration.seconds == 600
    assert order.idempotency_key == f"train-{ROLE}-4-1-1"


@pytest.mark.parametrize("state", ["QUEUED", "RUNNING", "EVALUATING"])
async def test_one_job_at_a_time(running: Rig, scripted: ScriptedTrainer, state: str) -> None:
    scripted.jobs = [job(state)]
    async with client_of(scripted) as client:
        await grown(running, 9)
        result = await train(running, client).run(running.lease.token)

    assert result == Result("SKIPPED", f"{ROLE}: job j is {state}")
    assert scripted.ordered == []


async def test_where_there_is_nothing_to_learn_from_the_step_says_so(running: Rig, scripted: ScriptedTrainer) -> None:
    scripted.faults = [MeshError("NO_TRAINING_DATA", "every tenant has refused")]
    async with client_of(scripted) as client:
        await grown(running, 9)
        result = await train(running, client).run(running.lease.token)

    assert result == Result("SKIPPED", f"{ROLE}: every tenant has refused")


@pytest.mark.parametrize(
    ("every", "policy", "why"),
    [(0, ON, "switched off"), (1, Policy(frozenset(), 0.0, 2), "autopromote is off")],
)
async def test_no_job_without_leave(
    running: Rig, scripted: ScriptedTrainer, every: int, policy: Policy, why: str
) -> None:
    async with client_of(scripted) as client:
        await grown(running, 9)
        result = await train(running, client, every, policy).run(running.lease.token)

    assert result.outcome == "SKIPPED"
    assert why in result.note
    assert scripted.ordered == []


async def test_a_job_that_failed_is_not_started_again_for_the_same_lines(
    running: Rig, empty_redis: RedisProcess, tmp_path: Path
) -> None:
    environment = settings_of(tmp_path / "trainer", empty_redis.url, "127.0.0.1:1", HIVEMIND_LEARN="false")
    await grown(running, 3)
    async with trainer(environment) as real:
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{real.server.grpc_port}")
        step = train(running, TrainerClient(channel, api_key=None, max_duration_s=0.0, max_cost_micros=0))
        first = await step.run(running.lease.token)
        (started,) = (await real.stub.ListJobs(pb.ListJobsRequest())).jobs
        await real.cancel(started.id)
        await real.end_of(started.id)
        second = await step.run(running.lease.token)
        jobs = (await real.stub.ListJobs(pb.ListJobsRequest())).jobs
        await channel.close()

    assert first.outcome == "DONE"
    assert second.outcome == "SKIPPED"
    assert f"job {started.id} for the same lines is CANCELLED" in second.note
    assert len(jobs) == 1
