"""Trainers for tests: the real server with the scripted job, in this process or in one of its own."""

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from hivemind.servers.common.server import MeshServer
from hivemind.servers.trainer.__main__ import build
from hivemind.servers.trainer.settings import TrainerSettings
from hivemind.v1 import trainer_pb2 as pb
from hivemind.v1 import trainer_pb2_grpc as rpc
from tests.support.scripted_job import Script
from tests.support.waiting import until

ROOT = Path(__file__).resolve().parents[2]
JOB = (sys.executable, str(ROOT / "tests" / "support" / "scripted_job.py"))
CHECK = (sys.executable, str(ROOT / "tests" / "support" / "check_config.py"))
QUICK = {
    "HIVEMIND_TRAIN_POLL_S": "0.05",
    "HIVEMIND_TRAIN_LEASE_S": "1.0",
    "HIVEMIND_TRAIN_RETRY_S": "0.05",
    "HIVEMIND_TRAIN_GRACE_S": "2.0",
    "HIVEMIND_TRAIN_ROOM_S": "0.2",
    "HIVEMIND_LEARN": "false",
    "HIVEMIND_DRAIN_DELAY_S": "0",
    "HIVEMIND_GRPC_PORT": "0",
    "HIVEMIND_METRICS_PORT": "0",
    "PYTHONPATH": str(ROOT),
}
FINAL = {pb.TrainingJob.SUCCEEDED, pb.TrainingJob.REJECTED, pb.TrainingJob.FAILED, pb.TrainingJob.CANCELLED}


@dataclass
class Rig:
    """A Trainer's client, and its state folder."""

    stub: rpc.TrainerServiceStub
    home: Path
    metrics_port: int = 0
    server: Any = field(default=None)

    async def start(self, **fields: Any) -> pb.TrainingJob:
        fields.setdefault("data", pb.TrainingData(mixture="default"))
        return (await self.stub.StartTraining(pb.StartTrainingRequest(**fields), timeout=30)).job

    async def get(self, job_id: str) -> pb.TrainingJob:
        return await self.stub.GetJob(pb.GetJobRequest(id=job_id), timeout=10)

    async def cancel(self, job_id: str, **fields: Any) -> pb.TrainingJob:
        return await self.stub.CancelJob(pb.CancelJobRequest(id=job_id, **fields), timeout=10)

    async def end_of(self, job_id: str, within_s: float = 30.0) -> pb.TrainingJob:
        """The job when it has ended, by its watch."""
        async for message in self.stub.WatchJob(pb.WatchJobRequest(id=job_id), timeout=within_s, wait_for_ready=True):
            if message.HasField("final"):
                return message.final
        raise AssertionError("the watch ended without a final message")

    async def until_step(self, job_id: str, step: int) -> pb.TrainingJob:
        async for message in self.stub.WatchJob(pb.WatchJobRequest(id=job_id), timeout=20):
            if message.HasField("progress") and message.progress.step >= step:
                break
        return await self.get(job_id)

    async def until_noted(self, job_id: str) -> pb.TrainingJob:
        """The job when it says what it waits for."""
        async for _ in self.stub.WatchJob(pb.WatchJobRequest(id=job_id), timeout=20):
            if (job := await self.get(job_id)).note:
                return job
        raise AssertionError("it ended without a note")

    def script(self, script: Script) -> None:
        """What the jobs do from now on."""
        (self.home / "script.json").write_text(json.dumps(script.__dict__))

    def run(self, job_id: str) -> Path:
        return self.home / "runs" / job_id

    def steps(self, job_id: str) -> list[int]:
        """The steps that were done, in their order, over all attempts."""
        lines = (self.run(job_id) / "steps.jsonl").read_text().splitlines()
        return [json.loads(line)["step"] for line in lines]

    def job_process(self, job_id: str) -> psutil.Process:
        """The process that trains (not its keeper)."""
        mine = processes_of(self.run(job_id))
        return next(p for p in mine if "launcher.py" not in " ".join(p.cmdline()))


def processes_of(run: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if str(run) in process.cmdline():
                found.append(process)
        except psutil.Error:
            continue
    return found


def settings_of(home: Path, redis_url: str, registry: str, **changes: str) -> dict[str, str]:
    """The environment of a Trainer."""
    return {
        **QUICK,
        "HIVEMIND_HOME": str(home),
        "HIVEMIND_CONFIG": str(home / "hivemind.toml"),
        "REDIS_URL": redis_url,
        "HIVEMIND_REGISTRY_ADDRESS": registry,
        **changes,
    }


@asynccontextmanager
async def trainer(environment: dict[str, str], *, check: Sequence[str] = CHECK) -> AsyncIterator[Rig]:
    """A Trainer in this process; it is drained at the end."""
    before = dict(os.environ)
    os.environ.update(environment)
    try:
        settings = TrainerSettings()
        server = MeshServer(settings, build(settings, job=JOB, check=check))
    finally:
        os.environ.clear()
        os.environ.update(before)
    await server.start()
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}")
    try:
        yield Rig(rpc.TrainerServiceStub(channel), settings.home.resolve(), server.metrics_port, server)
    finally:
        await channel.close()
        await server.drain(gently=False)


@dataclass
class TrainerProcess:
    """A Trainer in a process of its own, which may be killed."""

    process: subprocess.Popen[str]
    port: int
    home: Path

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Rig]:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self.port}") as channel:
            yield Rig(rpc.TrainerServiceStub(channel), self.home)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def trainer_process(environment: dict[str, str]) -> Iterator[TrainerProcess]:
    command = [sys.executable, "-m", "tests.support.trainer_process"]
    with subprocess.Popen(command, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            lines = (json.loads(line) for line in process.stdout)
            port = next(int(line["grpc_port"]) for line in lines if line["event"] == "serving")
            yield TrainerProcess(process, port, Path(environment["HIVEMIND_HOME"]).resolve())
        finally:
            process.terminate()
            process.wait(10)


def end_all_jobs(home: Path) -> None:
    """Ends what a killed Trainer has left behind."""
    for run in (home / "runs").glob("*"):
        for process in processes_of(run):
            process.kill()
        until(lambda run=run: not processes_of(run), what="the job's processes are gone")  # type: ignore[misc]


async def reason_of(call: Any) -> tuple[str, list[str]]:
    """The reason of an error, and the fields that it names."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    status = rpc_status.from_call(refused.value)
    assert status is not None, refused.value
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(bad)
    return info.reason, [v.field for v in bad.field_violations]
