"""The Trainer as the loop sees it."""

from collections.abc import Sequence
from typing import Final

import grpc

from hivemind.servers.common.channels import peer_metadata
from hivemind.servers.common.status import asked
from hivemind.servers.common.translate import duration
from hivemind.servers.orchestrator.ports import JobInfo, LearnerNews
from hivemind.v1 import trainer_pb2 as pb
from hivemind.v1 import trainer_pb2_grpc as rpc

RPC_TIMEOUT_S: Final = 5.0
START_TIMEOUT_S: Final = 60.0
"""The Trainer looks at the data of a job before it answers."""
_LOOKED_AT: Final = 500
_FINAL: Final = frozenset({"SUCCEEDED", "REJECTED", "FAILED", "CANCELLED"})


class TrainerClient:
    """Implements ports.Trainer. `max_duration_s` and `max_cost_micros` bound a job; 0: no limit."""

    def __init__(
        self, channel: grpc.aio.Channel, *, api_key: str | None, max_duration_s: float, max_cost_micros: int
    ) -> None:
        self._stub, self._api_key = rpc.TrainerServiceStub(channel), api_key
        self._max_duration_s, self._max_cost_micros = max_duration_s, max_cost_micros

    async def learner(self) -> LearnerNews:
        """See ports.Trainer."""
        request = pb.GetLearnerRequest()
        return _news(
            await asked(self._stub.GetLearner(request, timeout=RPC_TIMEOUT_S, metadata=self._metadata()), "the Trainer")
        )

    async def drain(self, token: int) -> LearnerNews:
        """See ports.Trainer."""
        request = pb.DrainLearnerRequest(fencing_token=token)
        return _news(
            await asked(
                self._stub.DrainLearner(request, timeout=RPC_TIMEOUT_S, metadata=self._metadata()), "the Trainer"
            )
        )

    async def jobs(self, role: str) -> Sequence[JobInfo]:
        """See ports.Trainer."""
        request = pb.ListJobsRequest(page_size=_LOOKED_AT)
        answer = await asked(
            self._stub.ListJobs(request, timeout=RPC_TIMEOUT_S, metadata=self._metadata()), "the Trainer"
        )
        return [_job(j) for j in answer.jobs if j.role == role]

    async def start(self, role: str, *, key: str, token: int) -> JobInfo:
        """See ports.Trainer."""
        request = pb.StartTrainingRequest(
            role=role, idempotency_key=key, fencing_token=token, max_cost_micros=self._max_cost_micros
        )
        if self._max_duration_s:
            request.max_duration.CopyFrom(duration(self._max_duration_s))
        answer = await asked(
            self._stub.StartTraining(request, timeout=START_TIMEOUT_S, metadata=self._metadata()), "the Trainer"
        )
        return _job(answer.job)

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        return peer_metadata(self._api_key)


def _news(message: pb.OnlineLearner) -> LearnerNews:
    return LearnerNews(
        state=pb.OnlineLearner.State.Name(message.state), note=message.note, waiting=message.waiting,
        learnt=message.learnt, published=message.published, refused=message.refused, adapter_id=message.adapter_id,
    )  # fmt: skip


def _job(message: pb.TrainingJob) -> JobInfo:
    state = pb.TrainingJob.State.Name(message.state)
    return JobInfo(message.id, state, message.last_sequence, message.error, final=state in _FINAL)
