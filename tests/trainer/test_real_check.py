"""StartTraining with the check that the job's own program makes, the hub being away."""

import json
import time
from collections.abc import AsyncIterator

import pytest

from hivemind.servers.arbiter.folder import LedgerFolder
from hivemind.servers.trainer.__main__ import CHECK
from hivemind.v1 import trainer_pb2 as pb
from tests.arbiter.examples import example
from tests.support.trainer_rig import Rig, end_all_jobs, reason_of, trainer

NO_HUB = {"HF_ENDPOINT": "http://127.0.0.1:9"}


@pytest.fixture
async def rig(environment: dict[str, str]) -> AsyncIterator[Rig]:
    async with trainer({**environment, **NO_HUB}, check=CHECK) as running:
        yield running
    end_all_jobs(running.home)


def file_of(rig: Rig, text: str) -> pb.TrainingData:
    (rig.home / "facts.jsonl").write_text(text)
    return pb.TrainingData(paths=["facts.jsonl"])


async def test_without_a_ledger_and_a_hub_there_is_no_data_to_be_had(rig: Rig) -> None:
    (rig.home / "datasets").mkdir()
    reason, fields = await reason_of(rig.stub.StartTraining(pb.StartTrainingRequest(), timeout=60))

    assert reason == "NO_TRAINING_DATA"
    assert fields == ["data.hub", "data"]
    assert list((rig.home / "runs").iterdir()) == []


async def test_without_a_hub_the_ledger_alone_will_do(rig: Rig) -> None:
    files = LedgerFolder(rig.home / "datasets", rotate_bytes=1 << 20, clock=time.time)
    (rig.home / "datasets").mkdir()
    files.commit([example(n) for n in range(3)])

    job = (await rig.stub.StartTraining(pb.StartTrainingRequest(), timeout=60)).job

    assert (job.data.platinum, job.data.mixture) == (True, "")
    config = json.loads((rig.run(job.id) / "config.json").read_text())
    assert config["data"]["platinum"] == str(rig.home / "datasets")


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "hold no records"), ("{broken\n", "is not JSON"), ('{"colour": "red"}\n', "usable samples in the files: 0")],
    ids=["empty", "broken JSON", "wrong schema"],
)
async def test_bad_data_is_refused_before_a_job_is_queued(rig: Rig, text: str, words: str) -> None:
    request = pb.StartTrainingRequest(data=file_of(rig, text))
    with pytest.raises(Exception, match=words):
        await rig.stub.StartTraining(request, timeout=60)
    assert await reason_of(rig.stub.StartTraining(request, timeout=60)) == ("NO_TRAINING_DATA", ["data"])


async def test_an_unknown_base_is_refused_by_the_name_of_its_field(rig: Rig) -> None:
    good = "".join(json.dumps({"instruction": f"{n}?", "response": f"{n}"}) + "\n" for n in range(3))
    request = pb.StartTrainingRequest(data=file_of(rig, good), base_model="no-such-model")

    assert await reason_of(rig.stub.StartTraining(request, timeout=60)) == ("INVALID_FIELD", ["base_model"])
