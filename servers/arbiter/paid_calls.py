"""Calls of paid models for one example: within its price ceiling and the tenant's budget, and every one booked."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import orjson

from hivemind.servers.arbiter.governance import Allowed
from hivemind.servers.arbiter.ports import ChatModels, ModelCallFailed, ModelReply
from hivemind.servers.arbiter.verdict import Schema
from hivemind.servers.common.catalogue import Model
from hivemind.servers.common.spend import BudgetBook
from hivemind.servers.common.tokens import PromptSize, prompt_size, text_tokens

_LEAST_ANSWER: Final = 256
"""Tokens of an answer below which it is not worth asking."""


class Spending(Protocol):
    """Who is told what a call cost."""

    def spent(self, alias: str, tenant_label: str, cost_micros: int) -> None:
        """Counts it."""


@dataclass(frozen=True, slots=True)
class Purse:
    """Where the money of refinement comes from and goes to, for every example alike. `clock` is monotonic."""

    models: ChatModels
    budgets: BudgetBook
    allowed: Callable[[], Allowed]
    tenant_label: Callable[[str], str]
    spending: Spending
    clock: Callable[[], float]


@dataclass(slots=True)
class PaidCalls:
    """The calls for one example. `cost_micros`: what they cost so far; `estimated`: models that told no usage.

    `ends`: when all must be over, by the purse's clock. No call gets more than half of the time that is left, so that
    one which hangs leaves time for another model.
    """

    purse: Purse
    tenant: str
    ends: float
    cost_micros: int = 0
    estimated: set[str] = field(default_factory=set)

    async def ask(
        self, model: Model, messages: Sequence[Mapping[str, str]], *, schema: Schema, wanted_tokens: int
    ) -> ModelReply:
        """One call; an answer of `wanted_tokens` at most, or fewer where the ceiling reaches for no more.

        ModelCallFailed if it fails or does not fit; MeshError REFINEMENT_DISABLED if the Governor has changed its mind,
        BUDGET_EXHAUSTED or BUDGET_UNAVAILABLE if the tenant has no money for it.
        """
        allowed = self.purse.allowed()
        allowed.check()
        size = prompt_size(len(orjson.dumps(messages)), len(messages), 0)
        tokens = self._affordable(model, size, wanted_tokens, allowed.price_ceiling_micros)
        upper = model.cost_micros(size.upper, tokens)
        hold = await self.purse.budgets.hold(self.tenant, upper)
        cost, used = upper, (size.expected, tokens)  # what a call that is cut off may have cost
        try:
            within_s = (self.ends - self.purse.clock()) / 2
            reply = await self.purse.models.ask(model, messages, schema=schema, max_tokens=tokens, within_s=within_s)
            used = self._used(model, reply, size)
            cost = model.cost_micros(*used)
            return reply
        except ModelCallFailed as error:
            if not error.may_have_cost:
                cost, used = 0, (0, 0)
            raise
        finally:
            hold.settle(cost)
            self._book(model, cost, used)

    def _affordable(self, model: Model, size: PromptSize, wanted: int, ceiling: int) -> int:
        tokens = min(wanted, model.max_output_tokens, model.context_tokens - size.expected)
        if model.output_price > 0:
            left = ceiling - self.cost_micros - model.cost_micros(size.upper, 0) - 1
            tokens = min(tokens, int(left / model.output_price))
        elif self.cost_micros + model.cost_micros(size.upper, 0) > ceiling:
            tokens = 0
        if tokens >= min(wanted, _LEAST_ANSWER):
            return tokens
        if model.context_tokens - size.expected < min(wanted, _LEAST_ANSWER):
            message = f"the conversation does not fit the context of {model.alias}"
        else:
            message = f"the price ceiling of {ceiling} micro-USD an example does not reach for asking {model.alias}"
        raise ModelCallFailed(message, may_have_cost=False, passing=False)

    def _used(self, model: Model, reply: ModelReply, size: PromptSize) -> tuple[int, int]:
        if reply.prompt_tokens is None or reply.completion_tokens is None:
            self.estimated.add(model.alias)
        prompt = size.expected if reply.prompt_tokens is None else reply.prompt_tokens
        answer = text_tokens(len(reply.text.encode(errors="replace")))
        return prompt, answer if reply.completion_tokens is None else reply.completion_tokens

    def _book(self, model: Model, cost: int, used: tuple[int, int]) -> None:
        self.cost_micros += cost
        self.purse.budgets.book(
            self.tenant, model.alias, cost_micros=cost, prompt_tokens=used[0], completion_tokens=used[1],
            master_cost=cost,
        )  # fmt: skip
        self.purse.spending.spent(model.alias, self.purse.tenant_label(self.tenant), cost)
