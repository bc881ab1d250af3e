"""Trials: shadows and other challengers answer in the background what the champion has answered, and are judged against
it; nobody is shown that. The Judge's calls are paid from the budget for refinement, and stop with it.

Where `auto` let a model without adapters answer what the role's model could have taken, the champion answers in the
background too: else nothing would ever be seen of an adapter in the domains that it has learnt because its model was
weak there.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Final

import orjson
import structlog

from hivemind.servers.common.catalogue import MASTER, Model
from hivemind.servers.common.errors import MeshError
from hivemind.servers.common.spend import BudgetBook
from hivemind.servers.common.tasks import end_tasks
from hivemind.servers.router.adapters import BASE
from hivemind.servers.router.completion import Completions
from hivemind.servers.router.json_splice import top_level
from hivemind.servers.router.judge import FlipRate, Judge
from hivemind.servers.router.outcomes import Outcome
from hivemind.servers.router.records import Call, Record
from hivemind.servers.router.request import Body, Hints, Request
from hivemind.servers.router.selector import SINGLE, Option, inner_cost
from hivemind.servers.router.strategy_calls import StrategyCaller
from hivemind.servers.router.work import UpstreamRefused, Work

_log = structlog.get_logger()

AT_ONCE: Final = 4
"""Shadows under way; what comes while as many are is left out: the evidence needs a sample, not every request."""
TRIALS_AT_ONCE: Final = 1
"""The same where the champion has to answer for the trial alone: that is work that no client waits for."""
DEADLINE_S: Final = 60.0
_JUDGE_CALLS: Final = 4
_ONLY_CLIENTS: Final = ("stream", "stream_options", "hivemind", "user")


@dataclass(frozen=True, slots=True)
class _Champion:
    """Whose answers the shadows' are held against. `adapter`: '' is the base model."""

    alias: str
    role: str
    adapter: str

    @property
    def model(self) -> str:
        """How it is asked for."""
        return f"{self.alias}:{self.adapter or BASE}"


class Shadows:
    """Runs the shadows of answers. `background` makes their calls; `tell` puts what was seen into the outbox; `allowed`
    tells whether the Governor lets money be spent on it; `clock` is monotonic, in seconds."""

    def __init__(
        self,
        background: Completions,
        budgets: BudgetBook,
        *,
        flips: FlipRate,
        tell: Callable[[Sequence[Outcome]], Awaitable[None]],
        allowed: Callable[[], bool],
        clock: Callable[[], float],
    ) -> None:
        self._background, self._budgets, self._flips = background, budgets, flips
        self._tell, self._allowed, self._clock = tell, allowed, clock
        self._tasks: set[asyncio.Task[None]] = set()

    def consider(self, work: Work) -> None:
        """Starts the shadows of an answer that the split's champion gave by one call, or could have given; never
        waits."""
        call = work.record.calls[-1] if work.record.calls else None
        judging = self._judge()
        if call is None or judging is None or work.record.strategy != SINGLE or not self._allowed():
            return
        if not call.adapter_role:
            self._try_elsewhere(work, judging)
            return
        role = self._background.fleet.adapters.role(call.adapter_role)
        if role is None or not call.unit or call.adapter != role.split.champion:
            return
        champion = _Champion(call.alias, call.adapter_role, call.adapter)
        for shadow in role.tried[: AT_ONCE - len(self._tasks)]:
            self._start(self._answer(work, champion, shadow, judging, work.text))

    def _try_elsewhere(self, work: Work, judging: Model) -> None:
        """Has the first model that could have taken the request, and has challengers, answer it in the background."""
        if not work.request.wants_auto or work.decision is None or len(self._tasks) >= TRIALS_AT_ONCE:
            return
        for option in work.decision.options:
            model = option.model
            role = self._background.fleet.adapters.role(model.role) if model.role else None
            if role is not None and role.tried and option.available:
                champion = _Champion(model.alias, model.role, role.split.champion)
                self._start(self._trial(work, champion, role.tried, judging))
                return

    def _start(self, running: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(running)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Ends what is under way."""
        await end_tasks(*self._tasks)

    def _judge(self) -> Model | None:
        catalogue = self._background.fleet.catalogue
        return next((m for m in map(catalogue.get, ("judge", "arbiter", MASTER)) if m is not None), None)

    async def _trial(self, work: Work, champion: _Champion, shadows: Sequence[str], judging: Model) -> None:
        """The champion's answer in the background, and then those of the shadows, one after the other."""
        try:
            answer = await self._background.plain(self._request(work.asked(champion.alias), champion.model))
        except (MeshError, UpstreamRefused) as error:
            _log.info("trial_left_out", request_id=work.record.request_id, why=str(error)[:200])
            return
        told = answer.work.record.calls[-1]
        await self._tell([_seen(work, champion.role, champion.adapter, told)])
        for shadow in shadows:
            await self._answer(work, champion, shadow, judging, answer.work.text)

    async def _answer(self, work: Work, champion: _Champion, shadow: str, judging: Model, champions: str) -> None:
        try:
            answer = await self._background.plain(
                self._request(work.asked(champion.alias), f"{champion.alias}:{shadow}")
            )
            told = answer.work.record.calls[-1]
            score = await self._score(answer.work, judging, champions, answer.work.text)
            outcome = replace(
                _seen(work, champion.role, shadow, told), compared_with=champion.adapter, score=score
            )  # fmt: skip
            await self._tell([outcome])
        except (MeshError, UpstreamRefused) as error:
            _log.info("shadow_left_out", request_id=work.record.request_id, adapter=shadow, why=str(error)[:200])

    async def _score(self, work: Work, judging: Model, champions: str, shadows: str) -> float | None:
        """1 if the shadow's answer is better, 0 if the champion's is, 0.5 for a tie; None without a verdict."""
        cost = _JUDGE_CALLS * inner_cost(work.request, judging)
        hold = await self._budgets.hold(work.request.tenant, cost)
        judged = Work(work.request, Record(
            work.record.request_id, work.record.created, work.record.tenant, "", "COMPLETE", judging.alias,
        ))  # fmt: skip
        try:
            caller = StrategyCaller(self._background, judged, Option(judging, cost), None)
            verdict = await Judge(judging, caller, self._flips).compare(work.request.messages, shadows, champions)
        finally:
            hold.settle(judged.record.cost_micros)
        return None if verdict is None or not self._flips.trusted else 0.5 + verdict.winner / 2

    def _request(self, request: Request, model: str) -> Request:
        fields = {k: v for k, v in orjson.loads(request.body.raw).items() if k not in _ONLY_CLIENTS}
        raw = orjson.dumps(fields)
        now = self._clock()
        return replace(
            request, model=model, body=Body(raw, top_level(raw)), stream=False, refine=False, hints=Hints(), policy="",
            arrived=now, deadline=now + DEADLINE_S,
        )  # fmt: skip


def _seen(work: Work, role: str, adapter: str, call: Call) -> Outcome:
    return Outcome(work.record.request_id, role, adapter, call.latency_s, call.cost_micros)
