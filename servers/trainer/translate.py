"""Between the messages of trainer.proto and the Trainer's core."""

import hashlib
from collections.abc import Sequence
from typing import Any, Final

from hivemind.servers.common.context import DEFAULT_TENANT
from hivemind.servers.common.errors import invalid_field
from hivemind.servers.common.translate import duration, page_size, timestamp
from hivemind.servers.trainer.jobs import Job, Progress
from hivemind.servers.trainer.learner import Standing, Taken
from hivemind.servers.trainer.lesson import Submission, Turn
from hivemind.servers.trainer.order import DEFAULT_ROLE, DataSelection, Order, Recipe
from hivemind.servers.trainer.ports import Call
from hivemind.v1 import trainer_pb2 as pb

_LONGEST_S: Final = 3e9
MAX_KEY: Final = 128
_OPTIONAL: Final = ("max_steps", "learning_rate", "rank", "max_seq_length", "epochs", "batch_size", "seed")


def order_of(message: pb.StartTrainingRequest) -> Order:
    """What is asked for; an absent `data` is None."""
    return Order(
        role=message.role,
        data=_selection(message.data) if message.HasField("data") else None,
        recipe=_recipe(message.recipe),
        base_model=message.base_model,
        max_duration_s=message.max_duration.seconds + message.max_duration.nanos / 1e9,
        max_cost_micros=message.max_cost_micros,
        fencing_token=message.fencing_token,
    )


Changing = (
    pb.StartTrainingRequest
    | pb.CancelJobRequest
    | pb.SubmitExamplesRequest
    | pb.PauseLearnerRequest
    | pb.ResumeLearnerRequest
    | pb.DrainLearnerRequest
)
"""The requests that take an idempotency key."""
OfRole = (
    pb.SubmitExamplesRequest
    | pb.GetLearnerRequest
    | pb.PauseLearnerRequest
    | pb.ResumeLearnerRequest
    | pb.DrainLearnerRequest
)
"""The requests that name the role of a learner."""


def call_of(message: Changing) -> Call:
    """The idempotency key, and what tells this request from another one with the same key."""
    key = message.idempotency_key
    if len(key) > MAX_KEY:
        raise invalid_field("idempotency_key", f"must have at most {MAX_KEY} characters")
    kind = message.DESCRIPTOR.name.encode()
    return Call(key, hashlib.sha256(kind + message.SerializeToString(deterministic=True)).hexdigest()[:32])


def page_of(message: pb.ListJobsRequest) -> tuple[int | None, int]:
    """Where a page begins and how long it may be, by AIP-158."""
    token = message.page_token
    if token and not (token.isascii() and token.isdecimal() and len(token) < 19):
        raise invalid_field("page_token", "is not one that ListJobs gave")
    return int(token) if token else None, page_size(message.page_size)


def job_of(job: Job) -> pb.TrainingJob:
    """The job as the contract has it."""
    message = pb.TrainingJob(
        id=job.id,
        state=pb.TrainingJob.State.Value(job.state),
        role=job.order.role,
        data=pb.TrainingData(paths=job.data.paths, platinum=job.data.platinum, mixture=job.data.mixture),
        recipe=_recipe_message(job.order.recipe),
        progress=progress_of(job.progress),
        error=job.error,
        adapter_id=job.adapter_id,
        backend=job.backend,
        base_model=job.order.base_model,
        attempts=job.attempts,
        note=job.note,
        first_sequence=job.result.first_sequence,
        last_sequence=job.result.last_sequence,
        cost_micros=job.cost_micros,
        evaluation=job.evaluation,
        max_cost_micros=job.order.max_cost_micros,
    )
    for field, seconds in (("create_time", job.created), ("start_time", job.started), ("end_time", job.ended)):
        if seconds:
            getattr(message, field).CopyFrom(timestamp(seconds))
    if job.order.max_duration_s:
        message.max_duration.CopyFrom(duration(min(job.order.max_duration_s, _LONGEST_S)))
    return message


def progress_of(progress: Progress) -> pb.TrainingProgress:
    """How far a job is."""
    return pb.TrainingProgress(
        step=progress.step,
        max_steps=progress.max_steps,
        loss=progress.loss,
        tokens_per_second=progress.tokens_per_second,
        eta=duration(min(progress.eta_s, _LONGEST_S)),
    )


def role_of(message: OfRole) -> str:
    """The role of the learner that is meant."""
    return message.role or DEFAULT_ROLE


def submissions_of(message: pb.SubmitExamplesRequest, caller: str) -> Sequence[Submission]:
    """The examples as they were sent. A caller that names itself by header teaches in its own name, and cannot say that
    an answer was checked."""
    return [
        Submission(
            e.platinum_id, e.sequence, caller or e.tenant or DEFAULT_TENANT, e.domain,
            tuple(Turn(m.role, m.content) for m in e.messages), e.answer, e.checked and not caller,
        )
        for e in message.examples
    ]  # fmt: skip


def taken_of(taken: Taken) -> pb.SubmitExamplesResponse:
    """What became of examples."""
    return pb.SubmitExamplesResponse(accepted=taken.accepted, duplicates=taken.duplicates, refused=taken.refused)


def learner_of(standing: Standing) -> pb.OnlineLearner:
    """The learner as the contract has it."""
    status = standing.status
    message = pb.OnlineLearner(
        role=standing.role, state=pb.OnlineLearner.State.Value(standing.state), note=standing.note,
        waiting=standing.waiting, learnt=status.learnt, held_out=status.held_out, batches=status.batches,
        published=status.published, refused=status.refused, steps=status.steps, cpu_seconds=status.cpu_seconds,
        last_sequence=status.last_sequence, adapter_id=status.adapter_id, evaluation=status.evaluation,
        set_aside=status.set_aside, distrusted_tenants=standing.distrusted,
    )  # fmt: skip
    for field, seconds in (("batch_close_time", status.batch_closed), ("publish_time", status.published_at)):
        if seconds:
            getattr(message, field).CopyFrom(timestamp(seconds))
    return message


def _selection(message: pb.TrainingData) -> DataSelection:
    return DataSelection(tuple(message.paths), message.platinum, message.mixture)


def _recipe(message: pb.TrainingRecipe) -> Recipe:
    fields: Any = message
    given = {name: getattr(message, name) for name in _OPTIONAL if fields.HasField(name)}
    return Recipe(**given, backend=message.backend)


def _recipe_message(recipe: Recipe) -> pb.TrainingRecipe:
    given: dict[str, Any] = {n: getattr(recipe, n) for n in _OPTIONAL if getattr(recipe, n) is not None}
    return pb.TrainingRecipe(**given, backend=recipe.backend)
