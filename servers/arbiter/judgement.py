"""How one draft is judged: the Oracle first, and where it is not accepted the Arbiter with all candidates in view.

An answer is accepted if nothing speaks against it (acceptance.py) and, where it differs from the draft, a comparison
finds it better in both orders (Zheng et al. 2023, position bias of LLM judges). Every step leaves a sentence.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

from hivemind.servers.arbiter.acceptance import Rule
from hivemind.servers.arbiter.candidate import Draft
from hivemind.servers.arbiter.instructions import Prompt, Quoted, conversation, fenced, prompt
from hivemind.servers.arbiter.paid_calls import PaidCalls
from hivemind.servers.arbiter.ports import ModelCallFailed, ModelReply
from hivemind.servers.arbiter.verdict import (
    COMPARISON,
    VERDICT,
    Invalid,
    Schema,
    Verdict,
    parse_comparison,
    parse_verdict,
)
from hivemind.servers.common.catalogue import Catalogue, Model
from hivemind.servers.common.tokens import text_tokens

_VERDICT_TOKENS: Final = 1024
_COMPARISON_TOKENS: Final = 256
_SHOWN_AGAIN_CHARS: Final = 2_000

Messages = list[Mapping[str, str]]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Accepted:
    """An accepted verdict: by whom (ORACLE or ARBITER), under which alias, and the version of the prompt."""

    verdict: Verdict
    by: str
    model: Model
    template_sha256: str


@dataclass(slots=True)
class Judgement:
    """One draft before Oracle and Arbiter. `decisions`: one sentence a step; `named`: models as their APIs named them.

    `final`: a model has judged it, or never will; `passing`: something failed that may work later.
    """

    draft: Draft
    catalogue: Catalogue
    calls: PaidCalls
    rule: Rule
    boundary: Callable[[], str]
    decisions: list[str] = field(default_factory=list)
    named: dict[str, str] = field(default_factory=dict)
    final: bool = False
    passing: bool = False
    _refined: tuple[Verdict, str] | None = None

    async def decide(self, *, oracle: bool, forced: bool) -> Accepted | None:
        """The accepted verdict, None if there is none. MeshError where money or the Governor ends it."""
        if forced:
            self.decisions.append("The Governor forces the Arbiter, so the Oracle was not asked.")
        elif oracle:
            accepted = await self._asked("ORACLE", "refine")
            if accepted is not None:
                return accepted
        return await self._asked("ARBITER", "arbitrate")

    async def _asked(self, by: str, template: str) -> Accepted | None:
        who, model = by.title(), self.catalogue.get(by.lower())
        if model is None:
            self.decisions.append(f"No {who} is configured.")
            return None
        instructions, code = prompt(template), self.boundary()
        asked = _messages(instructions, self._candidates(), code)
        wanted = _VERDICT_TOKENS + 2 * text_tokens(len(self.draft.draft.encode()))
        try:
            verdict = await self._answer(by, model, asked, VERDICT, wanted, parse_verdict)
            objection = self._objection(verdict, code) or await self._comparison(model, verdict)
        except ModelCallFailed as error:
            self.passing |= error.passing
            self.final |= not error.passing
            self.decisions.append(f"The {who} failed: {error}.")
            return None
        except Invalid as error:
            self.final = True
            self.decisions.append(f"The {who}'s verdict could not be used, nor could its repair: {error}.")
            return None
        if objection:
            self.final, self._refined = True, (verdict, objection)
            self.decisions.append(f"The {who}'s answer was not accepted: {objection}.")
            return None
        self.decisions.append(self._praise(who, verdict))
        return Accepted(verdict, by, model, instructions.sha256)

    def _candidates(self) -> list[Quoted]:
        quotes = [conversation(self.draft.messages), Quoted("draft", self.draft.draft)]
        quotes += [Quoted(f"other answer {i}", text) for i, text in enumerate(self.draft.alternatives, 1)]
        if self._refined is not None:
            verdict, objection = self._refined
            said = f"score {verdict.score}, draft_score {verdict.draft_score}, confidence {verdict.confidence}"
            quotes.append(Quoted("refined answer", verdict.answer))
            quotes.append(Quoted("verdict on the refined answer", f"{said}\n{verdict.changes}\nrefused: {objection}"))
        return quotes

    def _objection(self, verdict: Verdict, code: str) -> str:
        said = conversation(self.draft.messages).text
        return self.rule.objection(verdict, draft=self.draft.draft, conversation=said, boundary=code)

    async def _comparison(self, model: Model, verdict: Verdict) -> str:
        """Why the answer is not shown to be better than the draft; empty if it is, or is the draft itself."""
        if verdict.answer.strip() == self.draft.draft.strip():
            return ""
        judge = self.catalogue.get("judge") or model
        try:
            if await self._compared(judge, verdict.answer, self.draft.draft) != 1:
                return f"{judge.alias} does not find it better than the draft"
            if await self._compared(judge, self.draft.draft, verdict.answer) != -1:
                return f"{judge.alias} finds it better than the draft in one order only"
        except Invalid as error:
            return f"the comparison with the draft by {judge.alias} could not be used: {error}"
        return ""

    async def _compared(self, judge: Model, a: str, b: str) -> int:
        quotes = [conversation(self.draft.messages), Quoted("answer A", a), Quoted("answer B", b)]
        asked = _messages(prompt("compare"), quotes, self.boundary())
        return await self._answer("JUDGE", judge, asked, COMPARISON, _COMPARISON_TOKENS, parse_comparison)

    async def _answer(
        self, by: str, model: Model, asked: Messages, schema: Schema, wanted: int, parse: Callable[[str], T]
    ) -> T:
        """The parsed answer; one repair is tried where it is not what was asked for."""
        reply = await self._reply(by, model, asked, schema, wanted)
        try:
            return _whole(reply, parse)
        except Invalid as error:
            asked = [*asked, *_repair(reply.text, str(error))]
            answer = _whole(await self._reply(by, model, asked, schema, wanted), parse)
            self.decisions.append(f"{model.alias} repaired its answer ({error}).")
            return answer

    async def _reply(self, by: str, model: Model, asked: Messages, schema: Schema, wanted: int) -> ModelReply:
        try:
            reply = await self.calls.ask(model, asked, schema=schema, wanted_tokens=wanted)
        except ModelCallFailed:
            self.named.setdefault(by, model.endpoints[0].model)  # asked, though its API named nothing
            raise
        self.named[by] = reply.model or model.endpoints[0].model
        return reply

    def _praise(self, who: str, verdict: Verdict) -> str:
        scores = f"score {verdict.score:.2f}, draft {verdict.draft_score:.2f}"
        if verdict.answer.strip() == self.draft.draft.strip():
            return f"The {who} left the draft as it is ({scores})."
        over = " over the Oracle's" if who == "Arbiter" and self._refined is not None else ""
        return f"The {who}'s answer was accepted{over}; it is better than the draft in both orders ({scores})."


def _messages(instructions: Prompt, quotes: Sequence[Quoted], code: str) -> Messages:
    return [
        {"role": "system", "content": f"{instructions.text}\n\nThe code of the marks is {code}."},
        {"role": "user", "content": fenced(quotes, code)},
    ]


def _repair(said: str, problem: str) -> Messages:
    again = prompt("repair").text.replace("{problem}", problem)
    return [
        {"role": "assistant", "content": said[:_SHOWN_AGAIN_CHARS] or "(nothing)"},
        {"role": "user", "content": again},
    ]


def _whole(reply: ModelReply, parse: Callable[[str], T]) -> T:
    if not reply.whole:
        raise Invalid("it was cut off")
    return parse(reply.text)
