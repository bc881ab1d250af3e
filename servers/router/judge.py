"""The Judge: compares answers in both orders, so that position decides nothing, and watches its own flips.

Both orders agree: that is the verdict. They do not: a tie (Zheng et al. 2023, position bias of LLM judges). Above 30%
flips of the last 200 comparisons its verdicts count for nothing.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any, Final

import orjson

from hivemind.servers.common.catalogue import Model
from hivemind.servers.router.roles import Caller, Message, RoleFailed, instructed, prompt

TRUSTED_BELOW: Final = 0.3
_LEAST: Final = 10
_WINDOW: Final = 200
SCHEMA: Final[Mapping[str, Any]] = {
    "type": "object",
    "properties": {"winner": {"enum": ["A", "B", "TIE"]}, "reason": {"type": "string"}},
    "required": ["winner", "reason"],
    "additionalProperties": False,
}


class FlipRate:
    """How often the two orders disagreed lately; shared by all requests of a Router."""

    def __init__(self, on_change: Callable[[float], None] = lambda _: None) -> None:
        self._recent: deque[bool] = deque(maxlen=_WINDOW)
        self._on_change = on_change

    def note(self, *, flipped: bool) -> None:
        """Counts one comparison."""
        self._recent.append(flipped)
        self._on_change(self.rate)

    @property
    def rate(self) -> float:
        """The share of flips among the last 200 comparisons."""
        return sum(self._recent) / len(self._recent) if self._recent else 0.0

    @property
    def trusted(self) -> bool:
        """Whether verdicts count; the first ten comparisons do."""
        return len(self._recent) < _LEAST or self.rate <= TRUSTED_BELOW


class Judge:
    """Ranks answers of one request."""

    def __init__(self, model: Model, caller: Caller, flips: FlipRate) -> None:
        self.model, self._caller, self._flips = model, caller, flips

    async def compare(self, messages: Sequence[Message], first: str, second: str) -> int:
        """1 if the first answer is better, -1 if the second is, 0 for a tie, a flip or a Judge that is not trusted."""
        there, back = await asyncio.gather(self._ask(messages, first, second), self._ask(messages, second, first))
        if there is None or back is None:
            return 0
        self._flips.note(flipped=there == back != 0)
        if not self._flips.trusted:
            return 0
        return there if there == -back else 0

    async def rank(self, messages: Sequence[Message], answers: Sequence[str]) -> list[int]:
        """Indices of the answers, most pairwise wins first (Copeland's rule); ties keep their order."""
        wins = [0] * len(answers)
        pairs = list(combinations(range(len(answers)), 2))
        verdicts = await asyncio.gather(*(self.compare(messages, answers[a], answers[b]) for a, b in pairs))
        for (a, b), verdict in zip(pairs, verdicts, strict=True):
            wins[a] += verdict
            wins[b] -= verdict
        return sorted(range(len(answers)), key=lambda i: -wins[i])

    async def _ask(self, messages: Sequence[Message], a: str, b: str) -> int | None:
        """One order: 1 for A, -1 for B, 0 for a tie, None if no verdict can be had. One repair is tried."""
        instructions = prompt("judge")
        asked = instructed(messages, instructions, f"A:\n{a}", f"B:\n{b}")
        for attempt in range(2):
            try:
                reply = await self._caller.ask(
                    "judge", self.model, asked, prompt=instructions, temperature=0.0, schema=SCHEMA
                )
            except RoleFailed:
                return None
            verdict = parse_verdict(reply.text)
            if verdict is not None or attempt:
                return verdict
            asked = [
                *asked,
                {"role": "assistant", "content": reply.text[:500]},
                {"role": "user", "content": prompt("judge_repair").text},
            ]
        return None


def parse_verdict(text: str) -> int | None:
    """The winner in a JSON object that may stand among other text; None if there is none."""
    start, end = text.find("{"), text.rfind("}")
    try:
        found = orjson.loads(text[start : end + 1]) if 0 <= start < end else None
    except orjson.JSONDecodeError:
        return None
    winner = found.get("winner") if isinstance(found, dict) else None
    return {"A": 1, "B": -1, "TIE": 0}.get(winner) if isinstance(winner, str) else None
