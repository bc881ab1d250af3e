"""The Trainer's RPCs: messages in, the core, messages out. SubmitExamples is not built yet."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from hivemind.servers.common.context import current_call
from hivemind.servers.common.errors import MeshError
from hivemind.servers.common.status import to_status
from hivemind.servers.trainer import translate
from hivemind.servers.trainer.admission import Admissions
from hivemind.servers.trainer.learner import LearnerDesk
from hivemind.servers.trainer.ports import Store
from hivemind.v1 import trainer_pb2 as pb
from hivemind.v1 import trainer_pb2_grpc


class TrainerService(trainer_pb2_grpc.TrainerServiceServicer):
    """See trainer.proto."""

    def __init__(self, admissions: Admissions, store: Store, desk: LearnerDesk) -> None:
        self._admissions, self._store, self._desk = admissions, store, desk

    async def StartTraining(self, request: pb.StartTrainingRequest, context: Any) -> pb.StartTrainingResponse:
        """See trainer.proto."""
        job = await self._admissions.start(translate.order_of(request), translate.call_of(request))
        return pb.StartTrainingResponse(job=translate.job_of(job))

    async def ListJobs(self, request: pb.ListJobsRequest, context: Any) -> pb.ListJobsResponse:
        """See trainer.proto."""
        before, size = translate.page_of(request)
        found, further = await self._store.page(before, size)
        return pb.ListJobsResponse(jobs=map(translate.job_of, found), next_page_token=str(further or ""))

    async def GetJob(self, request: pb.GetJobRequest, context: Any) -> pb.TrainingJob:
        """See trainer.proto."""
        return translate.job_of(await self._admissions.get(request.id))

    async def CancelJob(self, request: pb.CancelJobRequest, context: Any) -> pb.TrainingJob:
        """See trainer.proto."""
        return translate.job_of(await self._admissions.cancel(request.id, translate.call_of(request)))

    async def WatchJob(self, request: pb.WatchJobRequest, context: Any) -> AsyncIterator[pb.WatchJobResponse]:
        """See trainer.proto."""
        try:
            async with aclosing(self._admissions.watch(request.id)) as changes:
                async for job in changes:
                    if job.final:
                        yield pb.WatchJobResponse(final=translate.job_of(job))
                    else:
                        yield pb.WatchJobResponse(progress=translate.progress_of(job.progress))
        except MeshError as error:
            yield pb.WatchJobResponse(error=to_status(error, current_call.get().request_id))
            raise

    async def SubmitExamples(self, request: pb.SubmitExamplesRequest, context: Any) -> pb.SubmitExamplesResponse:
        """See trainer.proto."""
        sent = translate.submissions_of(request, current_call.get().tenant)
        call = translate.call_of(request)
        return translate.taken_of(
            await self._desk.submit(translate.role_of(request), sent, request.fencing_token, call)
        )

    async def GetLearner(self, request: pb.GetLearnerRequest, context: Any) -> pb.OnlineLearner:
        """See trainer.proto."""
        return translate.learner_of(await self._desk.get(translate.role_of(request)))

    async def PauseLearner(self, request: pb.PauseLearnerRequest, context: Any) -> pb.OnlineLearner:
        """See trainer.proto."""
        role, call = translate.role_of(request), translate.call_of(request)
        return translate.learner_of(await self._desk.steer(role, "pause", call, reason=request.reason))

    async def ResumeLearner(self, request: pb.ResumeLearnerRequest, context: Any) -> pb.OnlineLearner:
        """See trainer.proto."""
        role, call = translate.role_of(request), translate.call_of(request)
        return translate.learner_of(await self._desk.steer(role, "resume", call))

    async def DrainLearner(self, request: pb.DrainLearnerRequest, context: Any) -> pb.OnlineLearner:
        """See trainer.proto."""
        role, call = translate.role_of(request), translate.call_of(request)
        return translate.learner_of(await self._desk.steer(role, "drain", call, token=request.fencing_token))
