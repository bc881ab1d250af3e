"""What a job survives: the death of its Trainer, of Redis, of its keeper, and a Trainer beside its own."""

import asyncio
import json
import os
import signal
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2

from hivemind.v1 import trainer_pb2 as pb
from tests.support.redis_process import redis_process
from tests.support.scripted_job import Script
from tests.support.scripted_registry import ScriptedRegistry
from tests.support.trainer_rig import Rig, end_all_jobs, processes_of, settings_of, trainer, trainer_process
from tests.support.waiting import until

Job = pb.TrainingJob


async def test_a_job_survives_the_kill_of_its_trainer_and_the_next_one_adopts_it(
    environment: dict[str, str], registry: ScriptedRegistry
) -> None:
    with trainer_process(environment) as first:
        async with first.client() as rig:
            rig.script(Script(steps=8, hold_at=4))
            job = await rig.start()
            await rig.until_step(job.id, 3)
        pid = rig.job_process(job.id).pid
        first.kill()
    assert rig.job_process(job.id).pid == pid

    with trainer_process(environment) as second:
        async with second.client() as rig:
            rig.run(job.id).joinpath("go").touch()
            final = await rig.end_of(job.id)

    assert (final.state, final.attempts) == (Job.SUCCEEDED, 1)
    assert rig.steps(job.id) == list(range(1, 9))
    assert len(registry.calls) == 1


async def test_a_job_that_ended_while_no_trainer_was_there_is_brought_to_its_end(
    environment: dict[str, str],
) -> None:
    with trainer_process(environment) as first:
        async with first.client() as rig:
            rig.script(Script(hold_at=4))
            job = await rig.start()
            await rig.until_step(job.id, 3)
        first.kill()
    rig.run(job.id).joinpath("go").touch()
    await asyncio.to_thread(until, lambda: not processes_of(rig.run(job.id)), what="the job has ended")

    async with trainer(environment) as rig:
        final = await rig.end_of(job.id)
    assert (final.state, final.attempts, final.progress.step) == (Job.SUCCEEDED, 1, 6)


async def test_a_job_and_its_trainer_killed_together_resumes(environment: dict[str, str]) -> None:
    with trainer_process(environment) as first:
        async with first.client() as rig:
            rig.script(Script(hold_at=4))
            job = await rig.start()
            await rig.until_step(job.id, 3)
        first.kill()
    for process in processes_of(rig.run(job.id)):
        process.kill()
    rig.run(job.id).joinpath("go").touch()

    async with trainer(environment) as rig:
        final = await rig.end_of(job.id)
    assert (final.state, final.attempts) == (Job.SUCCEEDED, 2)
    assert rig.steps(job.id) == [1, 2, 3, 3, 4, 5, 6]


async def test_the_death_of_the_keeper_is_that_of_the_job_and_it_resumes(rig: Rig) -> None:
    rig.script(Script(hold_at=4))
    job = await rig.start()
    await rig.until_step(job.id, 3)
    training = rig.job_process(job.id)
    keeper = training.parent()
    assert keeper is not None
    rig.run(job.id).joinpath("go").touch()

    keeper.kill()

    final = await rig.end_of(job.id)
    assert (final.state, final.attempts) == (Job.SUCCEEDED, 2)
    await asyncio.to_thread(until, lambda: not training.is_running(), what="the first process is gone")


async def test_a_trainer_that_ends_has_its_jobs_write_a_checkpoint_and_the_next_one_resumes(
    environment: dict[str, str],
) -> None:
    with trainer_process(environment) as first:
        async with first.client() as rig:
            rig.script(Script(steps=8, hold_at=5))
            job = await rig.start()
            await rig.until_step(job.id, 4)
        first.process.send_signal(signal.SIGINT)
        await asyncio.to_thread(first.process.wait, 10)
    await asyncio.to_thread(until, lambda: not processes_of(rig.run(job.id)), what="the job has ended")
    assert json.loads((rig.run(job.id) / "exit.json").read_text())["code"] == 3

    rig.run(job.id).joinpath("go").touch()
    async with trainer(environment) as rig:
        final = await rig.end_of(job.id)
    assert (final.state, final.attempts) == (Job.SUCCEEDED, 2)
    assert rig.steps(job.id) == list(range(1, 9))


async def test_a_job_that_is_killed_because_its_trainer_ends_has_not_crashed(environment: dict[str, str]) -> None:
    limits = {"HIVEMIND_TRAIN_GRACE_S": "0.2", "HIVEMIND_TRAIN_MAX_CRASHES": "1"}
    with trainer_process({**environment, **limits}) as first:
        async with first.client() as rig:
            rig.script(Script(hold_at=4, deaf=True))
            job = await rig.start()
            await rig.until_step(job.id, 3)
        first.process.send_signal(signal.SIGINT)
        await asyncio.to_thread(first.process.wait, 10)
    await asyncio.to_thread(until, lambda: not processes_of(rig.run(job.id)), what="the job has ended")

    rig.run(job.id).joinpath("go").touch()
    async with trainer({**environment, **limits}) as rig:
        final = await rig.end_of(job.id)
    assert (final.state, final.attempts) == (Job.SUCCEEDED, 2)


async def test_redis_killed_in_the_middle_loses_nothing(tmp_path: Path, registry: ScriptedRegistry) -> None:
    (tmp_path / "redis").mkdir()
    (tmp_path / "home").mkdir()
    with redis_process(tmp_path / "redis") as redis:
        environment = settings_of(tmp_path / "home", redis.url, f"127.0.0.1:{registry.port}")
        async with trainer({**environment, "HIVEMIND_REDIS_TIMEOUT_S": "0.5"}) as rig:
            rig.script(Script(steps=10, hold_at=5))
            job = await rig.start()
            waiting = await rig.start()
            await rig.until_step(job.id, 4)
            watch = rig.stub.WatchJob(pb.WatchJobRequest(id=job.id), timeout=30)
            await watch.read()

            redis.kill()
            rig.run(job.id).joinpath("go").touch()
            adapter = rig.run(job.id) / "adapter" / "adapter_model.safetensors"
            await asyncio.to_thread(until, adapter.exists, what="the job went on without Redis")
            await asyncio.to_thread(redis.start)

            rig.run(waiting.id).joinpath("go").touch()
            while not (message := await watch.read()).HasField("final"):
                assert message.HasField("progress")
            ends = [message.final, await rig.end_of(waiting.id)]
    assert [(e.state, e.attempts, e.progress.step) for e in ends] == [(Job.SUCCEEDED, 1, 10)] * 2
    assert [e.adapter_id for e in ends] == ["implementer-v000001", "implementer-v000002"]


async def test_a_watch_that_ends_with_its_server_says_so_in_band(environment: dict[str, str]) -> None:
    with trainer_process(environment) as running:
        async with running.client() as rig:
            rig.script(Script(steps=10, hold_at=5))
            job = await rig.start()
            watch = rig.stub.WatchJob(pb.WatchJobRequest(id=job.id), timeout=20)
            message = await watch.read()
            running.process.terminate()
            while message.HasField("progress"):
                message = await watch.read()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await watch.read()
    told = error_details_pb2.ErrorInfo()
    message.error.details[0].Unpack(told)
    assert (told.reason, caught.value.code()) == ("DRAINING", grpc.StatusCode.UNAVAILABLE)


async def test_of_two_trainers_on_one_redis_one_runs_a_job_and_both_can_tell_of_it(
    environment: dict[str, str], registry: ScriptedRegistry
) -> None:
    async with trainer(environment) as first, trainer(environment) as second:
        ids = [(await rig.start()).id for rig in (first, second, first, second)]
        ends = [await rig.end_of(i) for rig, i in zip((second, first, first, second), ids, strict=True)]

        assert [e.state for e in ends] == [Job.SUCCEEDED] * 4
        assert [first.steps(i) for i in ids] == [[1, 2, 3, 4, 5, 6]] * 4
        assert len(registry.calls) == 4


async def test_the_job_of_a_paused_trainer_is_taken_over_and_what_that_one_writes_later_is_refused(
    environment: dict[str, str], registry: ScriptedRegistry
) -> None:
    with trainer_process(environment) as paused:
        async with paused.client() as client:
            client.script(Script(steps=8, hold_at=4))
            job = await client.start()
            await client.until_step(job.id, 3)
        os.kill(paused.process.pid, signal.SIGSTOP)
        try:
            async with trainer(environment) as rig:
                rig.run(job.id).joinpath("go").touch()
                final = await rig.end_of(job.id)
                os.kill(paused.process.pid, signal.SIGCONT)
                async with paused.client() as client:
                    assert await client.get(job.id) == final
        finally:
            os.kill(paused.process.pid, signal.SIGCONT)

    assert (final.state, final.attempts) == (Job.SUCCEEDED, 1)
    assert len(registry.calls) == 1


async def test_a_job_of_a_machine_that_is_gone_is_given_to_another_one(
    environment: dict[str, str], tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "script.json").write_text(json.dumps(Script(hold_at=3).__dict__))
    with trainer_process({**environment, "HIVEMIND_HOME": str(elsewhere)}) as gone:
        async with gone.client() as rig:
            job = await rig.start()
            await rig.until_step(job.id, 2)
        gone.kill()
    end_all_jobs(elsewhere)

    async with trainer({**environment, "HIVEMIND_TRAIN_ABANDONED_S": "0.5"}) as rig:
        final = await rig.end_of(job.id)
    assert (final.state, final.attempts) == (Job.SUCCEEDED, 2)


async def test_cancelling_reaches_the_trainer_that_runs_the_job(environment: dict[str, str]) -> None:
    with trainer_process(environment) as process:
        async with process.client() as owner:
            owner.script(Script(steps=1000, hold_at=3))
            job = await owner.start()
            await owner.until_step(job.id, 2)
            async with trainer(environment) as other:
                await other.cancel(job.id)
                assert (await other.end_of(job.id)).state == Job.CANCELLED


async def test_a_watch_ends_with_an_error_where_the_store_stays_away(
    tmp_path: Path, registry: ScriptedRegistry
) -> None:
    (tmp_path / "redis").mkdir()
    (tmp_path / "home").mkdir()
    with redis_process(tmp_path / "redis") as redis:
        environment = settings_of(tmp_path / "home", redis.url, f"127.0.0.1:{registry.port}")
        async with trainer({**environment, "HIVEMIND_TRAIN_WATCH_PATIENCE_S": "0.3"}) as rig:
            rig.script(Script(hold_at=2))
            job = await rig.start()
            watch = rig.stub.WatchJob(pb.WatchJobRequest(id=job.id), timeout=20)
            await watch.read()
            redis.kill()

            while (message := await watch.read()).WhichOneof("event") == "progress":
                pass
            assert message.WhichOneof("event") == "error"
            with pytest.raises(grpc.aio.AioRpcError) as broken:
                await watch.read()
            assert broken.value.code() == grpc.StatusCode.UNAVAILABLE
            await asyncio.to_thread(redis.start)
        end_all_jobs(rig.home)
