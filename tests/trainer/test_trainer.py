"""The Trainer over gRPC, on a real Redis, with real processes that run a scripted job."""

import asyncio
import json
from pathlib import Path

import grpc
import httpx
import pytest

from hivemind.v1 import trainer_pb2 as pb
from tests.support.scripted_job import Script
from tests.support.scripted_registry import ScriptedRegistry
from tests.support.trainer_rig import Rig, reason_of, trainer
from tests.support.waiting import until

Job = pb.TrainingJob


async def test_a_job_is_queued_trained_evaluated_and_registered(rig: Rig, registry: ScriptedRegistry) -> None:
    queued = await rig.start(recipe=pb.TrainingRecipe(max_steps=6, seed=7))
    final = await rig.end_of(queued.id)

    assert queued.state == Job.QUEUED
    assert (final.state, final.adapter_id, final.role) == (Job.SUCCEEDED, "implementer-v000001", "implementer")
    assert (final.progress.step, final.progress.max_steps, final.progress.tokens_per_second) == (6, 6, 500.0)
    assert (final.first_sequence, final.last_sequence) == (4, 9)
    assert final.evaluation["heldout_gain"] == 0.75
    assert (final.backend, final.attempts, final.error) == ("cpu", 1, "")
    assert final.end_time.ToMilliseconds() >= final.start_time.ToMilliseconds() >= final.create_time.ToMilliseconds()
    assert [c.path for c in registry.calls] == [f"runs/{queued.id}/adapter"]


async def test_the_job_is_told_what_was_asked_for_and_whom_to_beat(rig: Rig, registry: ScriptedRegistry) -> None:
    registry.champion = ("implementer-v000009", "implementer/v000009")
    folder = rig.home / "adapters" / "implementer" / "v000009"
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    data = rig.home / "incoming" / "facts.jsonl"
    data.parent.mkdir()
    data.write_text('{"instruction": "a", "response": "b"}\n')

    job = await rig.start(
        data=pb.TrainingData(paths=["incoming/facts.jsonl"]), recipe=pb.TrainingRecipe(rank=16, backend="cpu"),
        max_duration={"seconds": 100},
    )  # fmt: skip
    await rig.end_of(job.id)

    config = json.loads((rig.run(job.id) / "config.json").read_text())
    assert config["data"]["paths"] == [str(data)]
    assert config["data"]["mixture"] == ""
    assert config["recipe"] == {"rank": 16}
    assert (config["backend"], config["max_train_s"]) == ("cpu", 80)
    assert (config["champion"], config["parent"]) == (str(folder), "implementer-v000009")


async def test_a_bodyless_order_is_for_the_implementer_with_platinum_and_the_default_mixture(rig: Rig) -> None:
    (rig.home / "datasets").mkdir()
    job = (await rig.stub.StartTraining(pb.StartTrainingRequest(), timeout=20)).job

    assert (job.role, job.data.platinum, job.data.mixture, list(job.data.paths)) == ("implementer", True, "default", [])
    config = json.loads((rig.run(job.id) / "config.json").read_text())
    assert config["data"]["platinum"] == str(rig.home / "datasets")


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.StartTrainingRequest(recipe=pb.TrainingRecipe(rank=7)), "recipe.rank"),
        (pb.StartTrainingRequest(recipe=pb.TrainingRecipe(learning_rate=-1)), "recipe.learning_rate"),
        (pb.StartTrainingRequest(recipe=pb.TrainingRecipe(max_steps=0)), "recipe.max_steps"),
        (pb.StartTrainingRequest(recipe=pb.TrainingRecipe(epochs=0)), "recipe.epochs"),
        (pb.StartTrainingRequest(recipe=pb.TrainingRecipe(backend="tpu")), "recipe.backend"),
        (pb.StartTrainingRequest(recipe=pb.TrainingRecipe(seed=-1)), "recipe.seed"),
        (pb.StartTrainingRequest(base_model="no-such-model"), "base_model"),
        (pb.StartTrainingRequest(base_model="../model"), "base_model"),
        (pb.StartTrainingRequest(role="Not A Role"), "role"),
        (pb.StartTrainingRequest(max_cost_micros=-1), "max_cost_micros"),
        (pb.StartTrainingRequest(data=pb.TrainingData(mixture="unheard-of")), "data.mixture"),
    ],
    ids=str,
)
async def test_a_bad_order_is_refused_with_its_field_before_anything_is_queued(
    rig: Rig, request_: pb.StartTrainingRequest, field: str
) -> None:
    assert await reason_of(rig.stub.StartTraining(request_, timeout=20)) == ("INVALID_FIELD", [field])
    assert list((await rig.stub.ListJobs(pb.ListJobsRequest())).jobs) == []
    assert list((rig.home / "runs").glob("*")) == []


async def test_no_data_to_be_had_says_so(rig: Rig) -> None:
    for data in (pb.TrainingData(), pb.TrainingData(platinum=True)):
        reason, fields = await reason_of(rig.stub.StartTraining(pb.StartTrainingRequest(data=data)))
        assert reason == "NO_TRAINING_DATA"
        assert fields[0].startswith("data")


async def test_unsloth_is_refused_where_there_is_no_gpu(environment: dict[str, str]) -> None:
    async with trainer({**environment, "PATH": "/nowhere"}) as rig:
        request = pb.StartTrainingRequest(recipe=pb.TrainingRecipe(backend="unsloth"))
        assert await reason_of(rig.stub.StartTraining(request)) == ("INVALID_FIELD", ["recipe.backend"])


async def test_one_job_runs_at_a_time_and_the_others_wait_their_turn(rig: Rig) -> None:
    rig.script(Script(hold_at=2))
    ids = [(await rig.start()).id for _ in range(3)]
    await rig.until_step(ids[0], 1)

    assert [(await rig.get(i)).state for i in ids] == [Job.RUNNING, Job.QUEUED, Job.QUEUED]
    for job_id in ids:
        rig.run(job_id).joinpath("go").touch()
    ends = [await rig.end_of(i) for i in ids]
    assert [e.state for e in ends] == [Job.SUCCEEDED] * 3
    begun = [e.start_time.ToMilliseconds() for e in ends]
    assert begun == sorted(begun)


async def test_jobs_are_listed_newest_first_in_pages(rig: Rig) -> None:
    rig.script(Script(hold_at=1))
    ids = [(await rig.start()).id for _ in range(5)]
    first = await rig.stub.ListJobs(pb.ListJobsRequest(page_size=3))
    second = await rig.stub.ListJobs(pb.ListJobsRequest(page_size=3, page_token=first.next_page_token))

    assert [j.id for j in (*first.jobs, *second.jobs)] == ids[::-1]
    assert second.next_page_token == ""
    assert await reason_of(rig.stub.ListJobs(pb.ListJobsRequest(page_token="x"))) == ("INVALID_FIELD", ["page_token"])


async def test_a_running_job_is_cancelled_at_a_checkpoint(rig: Rig, registry: ScriptedRegistry) -> None:
    rig.script(Script(steps=1000, hold_at=4))
    job = await rig.start()
    await rig.until_step(job.id, 3)
    asked = await rig.cancel(job.id)
    final = await rig.end_of(job.id)

    assert asked.state == Job.RUNNING
    assert final.state == Job.CANCELLED
    assert json.loads((rig.run(job.id) / "checkpoint.json").read_text())["step"] == 4
    assert json.loads((rig.run(job.id) / "exit.json").read_text())["code"] == 3
    assert (await rig.cancel(job.id)).state == Job.CANCELLED
    assert registry.calls == []


async def test_a_job_that_does_not_heed_is_killed_after_the_grace(environment: dict[str, str]) -> None:
    async with trainer({**environment, "HIVEMIND_TRAIN_GRACE_S": "0.2"}) as rig:
        rig.script(Script(hold_at=2, deaf=True))
        job = await rig.start()
        await rig.until_step(job.id, 1)
        await rig.cancel(job.id)

        assert (await rig.end_of(job.id)).state == Job.CANCELLED
        assert json.loads((rig.run(job.id) / "exit.json").read_text())["code"] == -9


async def test_a_waiting_job_is_cancelled_at_once_and_an_ended_one_is_not(rig: Rig) -> None:
    rig.script(Script(hold_at=2))
    running, waiting = await rig.start(), await rig.start()
    await rig.until_step(running.id, 1)

    assert (await rig.cancel(waiting.id)).state == Job.CANCELLED
    rig.run(running.id).joinpath("go").touch()
    assert (await rig.end_of(running.id)).state == Job.SUCCEEDED
    assert (await reason_of(rig.cancel(running.id)))[0] == "JOB_STATE"
    assert (await reason_of(rig.cancel("no-such-job")))[0] == "NOT_FOUND_RESOURCE"


async def test_a_new_adapter_challenges_with_a_small_share(rig: Rig, registry: ScriptedRegistry) -> None:
    job = await rig.end_of((await rig.start()).id)

    assert [(t.adapter_id, t.traffic) for t in registry.traffic] == [(job.adapter_id, 0.01)]


async def test_an_adapter_waits_where_the_challengers_have_all_that_they_may_have(
    rig: Rig, registry: ScriptedRegistry
) -> None:
    registry.full = True
    job = await rig.end_of((await rig.start()).id)

    assert job.state == pb.TrainingJob.SUCCEEDED


async def test_a_job_that_fails_the_gates_is_rejected_and_never_registered(
    rig: Rig, registry: ScriptedRegistry
) -> None:
    rig.script(Script(exit=4, reason="the held-out loss rose by 3%"))
    final = await rig.end_of((await rig.start()).id)

    assert (final.state, final.error) == (Job.REJECTED, "the held-out loss rose by 3%")
    assert final.evaluation["heldout_loss"] == 0.5
    assert registry.calls == []


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (Script(exit=5, reason="facts.jsonl line 3 is no JSON"), "facts.jsonl line 3"),
        (Script(exit=1), "some words about it"),
        (Script(nan_at=3, hold_at=5), "NaN or infinite) at step 3"),
        (Script(full_at=4), "disk is full"),
        (Script(adapter=False), "left no adapter"),
    ],
    ids=["bad data", "unexpected exit", "NaN", "disk full", "no adapter"],
)
async def test_what_cannot_go_well_fails_at_once_with_its_reason(
    rig: Rig, registry: ScriptedRegistry, script: Script, words: str
) -> None:
    rig.script(script)
    final = await rig.end_of((await rig.start()).id)

    assert final.state == Job.FAILED
    assert words in final.error
    assert final.attempts == 1
    assert registry.calls == []


async def test_a_killed_job_goes_on_from_its_checkpoint(rig: Rig, registry: ScriptedRegistry) -> None:
    rig.script(Script(steps=8, checkpoint_every=2, kill_at=[6]))
    job = await rig.start()
    final = await rig.end_of(job.id)

    assert (final.state, final.attempts) == (Job.SUCCEEDED, 2)
    assert rig.steps(job.id) == [1, 2, 3, 4, 5, 5, 6, 7, 8]
    assert len(registry.calls) == 1


async def test_a_job_that_is_killed_again_and_again_fails_and_memory_is_named(
    rig: Rig, registry: ScriptedRegistry
) -> None:
    rig.script(Script(kill_at=[3, 3, 3, 3, 3]))
    job = await rig.start()
    final = await rig.end_of(job.id)

    assert (final.state, final.attempts) == (Job.FAILED, 3)
    assert "SIGKILL" in final.error
    assert "memory" in final.error
    assert "3 times" in final.error
    assert registry.calls == []


async def test_a_job_without_a_sign_of_life_is_killed_and_resumed(environment: dict[str, str]) -> None:
    async with trainer({**environment, "HIVEMIND_TRAIN_STALL_S": "0.5", "HIVEMIND_TRAIN_MAX_CRASHES": "1"}) as rig:
        rig.script(Script(mute_at=3))
        final = await rig.end_of((await rig.start()).id)

        assert (final.state, final.error) == (Job.FAILED, "it gave no sign of life for 0.5 s")


@pytest.mark.parametrize("budget", ["time", "money"])
async def test_a_job_above_its_budget_is_ended(environment: dict[str, str], budget: str) -> None:
    async with trainer({**environment, "HIVEMIND_TRAIN_CPU_PRICE_PER_HOUR_MICROS": "3600000"}) as rig:
        rig.script(Script(hold_at=3))
        limits = {"max_duration": {"seconds": 1}} if budget == "time" else {"max_cost_micros": 1000}
        final = await rig.end_of((await rig.start(**limits)).id)

        assert final.state == Job.FAILED
        assert "max_duration" in final.error if budget == "time" else "max_cost_micros" in final.error
        assert final.cost_micros >= (1000 if budget == "time" else 0)


async def test_a_log_with_garbage_in_it_is_read_around(rig: Rig) -> None:
    rig.script(Script(garbage=True))
    final = await rig.end_of((await rig.start()).id)

    assert (final.state, final.progress.step) == (Job.SUCCEEDED, 6)


async def test_what_the_registry_refuses_has_failed_with_its_words(rig: Rig, registry: ScriptedRegistry) -> None:
    registry.refusal = (grpc.StatusCode.INVALID_ARGUMENT, "adapter_model.safetensors: holds NaN")
    final = await rig.end_of((await rig.start()).id)

    assert final.state == Job.FAILED
    assert "holds NaN" in final.error


async def test_a_registry_that_is_down_is_waited_for(rig: Rig, registry: ScriptedRegistry) -> None:
    await registry.stop()
    job = await rig.start()
    waiting = await rig.until_noted(job.id)

    assert waiting.state == Job.EVALUATING
    assert "waits for the adapter registry" in waiting.note
    await registry.start()
    final = await rig.end_of(job.id)
    assert (final.state, final.note) == (Job.SUCCEEDED, "")


async def test_an_idempotency_key_has_one_effect_also_at_the_same_time(rig: Rig) -> None:
    rig.script(Script(hold_at=1))
    jobs = await asyncio.gather(*(rig.start(idempotency_key="k1", role="r1") for _ in range(4)))
    again = await rig.start(idempotency_key="k1", role="r1")

    assert {j.id for j in [*jobs, again]} == {again.id}
    assert len((await rig.stub.ListJobs(pb.ListJobsRequest())).jobs) == 1
    assert [p.name for p in (rig.home / "runs").iterdir()] == [again.id]
    assert (await reason_of(rig.start(idempotency_key="k1", role="r2")))[0] == "IDEMPOTENCY_KEY_REUSED"
    await rig.cancel(again.id, idempotency_key="c1")
    await rig.cancel(again.id, idempotency_key="c1")
    assert (await reason_of(rig.cancel(again.id, idempotency_key="k1")))[0] == "IDEMPOTENCY_KEY_REUSED"


async def test_the_order_of_an_old_leader_is_refused(rig: Rig) -> None:
    await rig.start(fencing_token=5)

    assert (await reason_of(rig.start(fencing_token=4)))[0] == "STALE_FENCING_TOKEN"
    assert (await rig.start(fencing_token=5)).state == Job.QUEUED


async def test_a_full_queue_refuses_with_the_time_to_retry(environment: dict[str, str]) -> None:
    async with trainer({**environment, "HIVEMIND_TRAIN_MAX_QUEUED": "1"}) as rig:
        rig.script(Script(hold_at=2))
        first = await rig.start()
        await rig.until_step(first.id, 1)
        await rig.start()

        assert (await reason_of(rig.start()))[0] == "OVERLOADED"


async def test_a_watch_of_nothing_ends_with_an_error_in_band_and_as_its_status(rig: Rig) -> None:
    watch = rig.stub.WatchJob(pb.WatchJobRequest(id="nothing"))

    assert (await watch.read()).HasField("error")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await watch.read()
    assert refused.value.code() == grpc.StatusCode.NOT_FOUND


async def test_a_watch_shows_progress_and_ends_with_the_job(rig: Rig) -> None:
    job = await rig.start()
    kinds = [m.WhichOneof("event") async for m in rig.stub.WatchJob(pb.WatchJobRequest(id=job.id), timeout=30)]

    assert kinds[-1] == "final"
    assert set(kinds[:-1]) == {"progress"}


async def test_metrics_count_steps_tokens_and_jobs(rig: Rig) -> None:
    await rig.end_of((await rig.start()).id)

    def shown() -> str:
        text = httpx.get(f"http://127.0.0.1:{rig.metrics_port}/metrics").text
        return text if 'hivemind_training_jobs{state="SUCCEEDED"} 1.0' in text else ""

    text = await asyncio.to_thread(lambda: until(shown, what="the job is counted"))
    assert "hivemind_training_step_seconds_count 5.0" in text
    tokens = next(line for line in text.splitlines() if line.startswith("hivemind_training_tokens_total "))
    assert float(tokens.split()[1]) > 0


async def test_a_gpu_job_waits_until_enough_memory_is_free(environment: dict[str, str], tmp_path: Path) -> None:
    free = tmp_path / "free"
    free.write_text("1000")
    smi = tmp_path / "bin" / "nvidia-smi"
    smi.parent.mkdir()
    smi.write_text(f'#!/bin/sh\necho "$(cat {free}), 24000"\n')
    smi.chmod(0o755)
    async with trainer({**environment, "PATH": f"{smi.parent}:/usr/bin:/bin"}) as rig:
        job = await rig.start(recipe=pb.TrainingRecipe(backend="unsloth"))
        small = await rig.start(recipe=pb.TrainingRecipe(backend="cpu"))
        assert (await rig.end_of(small.id)).state == Job.SUCCEEDED
        waiting = await rig.until_noted(job.id)

        assert waiting.state == Job.QUEUED
        assert "1000 of 24000 MiB" in waiting.note
        free.write_text("23000")
        assert (await rig.end_of(job.id)).state == Job.SUCCEEDED


async def test_a_state_folder_that_cannot_be_written_queues_nothing(rig: Rig) -> None:
    (rig.home / "runs").write_text("in the way")

    assert (await reason_of(rig.start()))[0] == "STORE_FULL"
    assert list((await rig.stub.ListJobs(pb.ListJobsRequest())).jobs) == []
    (rig.home / "runs").unlink()
    assert (await rig.end_of((await rig.start()).id)).state == Job.SUCCEEDED
