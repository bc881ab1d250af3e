"""A Trainer whose learner does what a test says, for the faults that a real one cannot be made to have."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from prometheus_client import CollectorRegistry

from hivemind.servers.common.errors import MeshError
from hivemind.servers.common.interceptors import CallPolicy, MeshInterceptor
from hivemind.servers.common.metrics import RpcMetrics
from hivemind.v1 import trainer_pb2 as pb
from hivemind.v1 import trainer_pb2_grpc as rpc


@dataclass
class ScriptedTrainer(rpc.TrainerServiceServicer):
    """Holds what it is given, by id. `faults` are raised one a call, before anything is held; `refuses`: reasons by
    sequence; `answers` is waited for after an example is held."""

    held: dict[str, pb.TrainingExample] = field(default_factory=dict)
    asked: list[tuple[float, int]] = field(default_factory=list)
    duplicates: list[int] = field(default_factory=list)
    faults: list[MeshError] = field(default_factory=list)
    refuses: dict[int, str] = field(default_factory=dict)
    answers: asyncio.Event = field(default_factory=asyncio.Event)
    learner: pb.OnlineLearner = field(default_factory=lambda: pb.OnlineLearner(state=pb.OnlineLearner.WAITING))
    learner_asked: int = 0
    drained: list[pb.DrainLearnerRequest] = field(default_factory=list)
    jobs: list[pb.TrainingJob] = field(default_factory=list)
    ordered: list[pb.StartTrainingRequest] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.answers.set()

    @property
    def sequences(self) -> list[int]:
        """What it holds, in the order in which it came."""
        return [example.sequence for example in self.held.values()]

    async def SubmitExamples(self, request: pb.SubmitExamplesRequest, context: Any) -> pb.SubmitExamplesResponse:
        self._fail()
        answer = pb.SubmitExamplesResponse()
        for example in request.examples:
            self.asked.append((time.monotonic(), example.sequence))
            if example.sequence in self.refuses:
                answer.refused[self.refuses[example.sequence]] += 1
            elif example.platinum_id in self.held:
                self.duplicates.append(example.sequence)
                answer.duplicates += 1
            else:
                self.held[example.platinum_id] = example
                answer.accepted += 1
        await self.answers.wait()
        return answer

    async def GetLearner(self, request: pb.GetLearnerRequest, context: Any) -> pb.OnlineLearner:
        self.learner_asked += 1
        return self.learner

    async def DrainLearner(self, request: pb.DrainLearnerRequest, context: Any) -> pb.OnlineLearner:
        self._fail()
        self.drained.append(request)
        return self.learner

    async def ListJobs(self, request: pb.ListJobsRequest, context: Any) -> pb.ListJobsResponse:
        return pb.ListJobsResponse(jobs=self.jobs)

    async def StartTraining(self, request: pb.StartTrainingRequest, context: Any) -> pb.StartTrainingResponse:
        self._fail()
        self.ordered.append(request)
        return pb.StartTrainingResponse(job=pb.TrainingJob(id="job-1", role=request.role, state=pb.TrainingJob.QUEUED))

    def _fail(self) -> None:
        if self.faults:
            self.asked.append((time.monotonic(), 0))
            raise self.faults.pop(0)


@asynccontextmanager
async def scripted_trainer(trainer: ScriptedTrainer, *, port: int = 0) -> AsyncIterator[str]:
    """Serves one; its address."""
    policy = CallPolicy(None, 10.0, 100)
    server = grpc.aio.server(
        interceptors=[MeshInterceptor(policy, RpcMetrics(CollectorRegistry()))], options=(("grpc.so_reuseport", 0),)
    )
    rpc.add_TrainerServiceServicer_to_server(trainer, server)
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield f"127.0.0.1:{bound}"
    finally:
        trainer.answers.set()
        await server.stop(None)
