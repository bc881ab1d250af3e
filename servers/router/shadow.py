"""Shadow challengers: they answer in the background what the champion has answered, are judged against it, and are
never shown. The Judge's calls are paid from the budget for refinement, and stop with it."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Final

import orjson
import structlog

from hivemind.servers.common.catalogue import MASTER, Model
from hivemind.servers.common.errors import MeshError
from hivemind.servers.common.spend import BudgetBook
from hivemind.servers.common.tasks import end_tasks
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
DEADLINE_S: Final = 60.0
_JUDGE_CALLS: Final = 4
_ONLY_CLIENTS: Final = ("stream", "stream_options", "hivemind", "user")


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
        """Starts the shadows of an answer that the split's champion gave by one call; never waits."""
        call = work.record.calls[-1] if work.record.calls else None
        if call is None or not call.unit or work.record.strategy != SINGLE or not self._allowed():
            return
        role, judging = self._background.fleet.adapters.role(call.adapter_role), self._judge()
        if role is None or judging is None or call.adapter != role.split.champion:
            return
        for shadow in role.shadows[: AT_ONCE - len(self._tasks)]:
            task = asyncio.get_running_loop().create_task(self._answer(work, call, shadow, judging))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Ends what is under way."""
        await end_tasks(*self._tasks)

    def _judge(self) -> Model | None:
        catalogue = self._background.fleet.catalogue
        return next((m for m in map(catalogue.get, ("judge", "arbiter", MASTER)) if m is not None), None)

    async def _answer(self, work: Work, call: Call, shadow: str, judging: Model) -> None:
        try:
            answer = await self._background.plain(self._request(work.asked(call.alias), f"{call.alias}:{shadow}"))
            told = answer.work.record.calls[-1]
            score = await self._score(answer.work, judging, work.text, answer.work.text)
            outcome = Outcome(
                work.record.request_id, call.adapter_role, shadow, told.latency_s, told.cost_micros,
                compared_with=call.adapter, score=score,
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
