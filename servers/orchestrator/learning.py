"""The steps that have learning done: by the online learner, and by training jobs."""

from dataclasses import dataclass

from hivemind.servers.common.errors import MeshError
from hivemind.servers.orchestrator.cycle import Result, Token
from hivemind.servers.orchestrator.map_keeper import MapKeeper
from hivemind.servers.orchestrator.ports import JobInfo, LearnerNews, Policy, Trainer


class OnlineLearner:
    """Implements ports.OnlineUpdates by the Trainer's learner. What was published is told against the cycle before.

    One that is at work publishes by itself. One that waits for more examples is told that these are all.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._before: LearnerNews | None = None

    async def publish(self, *, token: int) -> Result:
        """See ports.OnlineUpdates."""
        news = await self._trainer.learner()
        if news.waiting and news.state == "WAITING":
            news = await self._trainer.drain(token)
        before, self._before = self._before or news, news
        if news.state == "UNAVAILABLE":
            return Result("SKIPPED", f"the online learner is not there: {news.note or 'it does not say why'}")
        stands = f"{news.waiting} examples wait, {news.learnt} were learnt"
        published, refused = news.published - before.published, news.refused - before.refused
        if refused > 0:
            stands = f"{stands}; the gate refused {refused}"
        if published > 0:
            return Result("DONE", f"{published} published since the last cycle, the last {news.adapter_id}; {stands}")
        return Result("SKIPPED", f"nothing new was published; {stands}{f' ({news.note})' if news.note else ''}")


@dataclass(frozen=True, slots=True)
class Train:
    """Has a job learn from the ledger once enough has come since the last one. `every`: lines of the ledger, 0: never.

    A job that ended without an adapter is not tried again before as many lines have come once more.
    """

    trainer: Trainer
    keeper: MapKeeper
    policy: Policy
    every: int
    name: str = "train"

    async def run(self, token: Token) -> Result:
        """See cycle.Step."""
        if not self.every:
            return Result("SKIPPED", "switched off (train_every_examples = 0)")
        if not self.policy.roles:
            return Result("SKIPPED", "no role may change by itself (autopromote is off)")
        results = [await self._train(role, token) for role in sorted(self.policy.roles)]
        return Result(
            "DONE" if any(r.outcome == "DONE" for r in results) else "SKIPPED", "; ".join(r.note for r in results)
        )

    async def _train(self, role: str, token: Token) -> Result:
        jobs = await self.trainer.jobs(role)
        under_way = next((j for j in jobs if not j.final), None)
        if under_way is not None:
            return Result("SKIPPED", f"{role}: job {under_way.id} is {under_way.state}")
        learnt = next((j.last_sequence for j in jobs if j.state == "SUCCEEDED" and j.last_sequence), 0)
        new = self.keeper.ledger_sequence - learnt
        if new < self.every:
            return Result("SKIPPED", f"{role}: {new} lines since the last job, {self.every} are waited for")
        return await self._start(role, learnt, new, token())

    async def _start(self, role: str, learnt: int, new: int, token: int) -> Result:
        key = f"train-{role}-{learnt}-{new // self.every}-{token}"
        try:
            job = await self.trainer.start(role, key=key, token=token)
        except MeshError as error:
            if error.reason != "NO_TRAINING_DATA":
                raise
            return Result("SKIPPED", f"{role}: {error.message}")
        if job.final:
            return Result("SKIPPED", f"{role}: {_ended(job)}; the next is started after more lines")
        return Result("DONE", f"{role}: job {job.id} started, {new} lines since the last one")


def _ended(job: JobInfo) -> str:
    return f"job {job.id} for the same lines is {job.state}{f' ({job.error})' if job.error else ''}"
