"""The Judge: compares answers in both orders, so that position decides nothing, and watches its own flips.

Both orders agree: that is the verdict. They do not: a tie (Zheng et al. 2023, position bias of LLM judges). Beside the
winner it scores both answers by a short rubric; the mean over both orders breaks ties of a ranking. Above 30% flips of
the last 200 comparisons its verdicts count for nothing.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean
from typing import Any, Final, TypeGuard

import orjson

from hivemind.servers.common.catalogue import Model
from hivemind.servers.router.roles import Caller, Message, RoleFailed, instructed, prompt
from hivemind.servers.router.rounds import round_s, within

TRUSTED_BELOW: Final = 0.3
_LEAST: Final = 10
_WINDOW: Final = 200
_WINNERS: Final = {"A": 1, "B": -1, "TIE": 0}
SCHEMA: Final[Mapping[str, Any]] = {
    "type": "object",
    "properties": {
        "winner": {"enum": list(_WINNERS)},
        "reason": {"type": "string"},
        "score_a": {"type": "number"},
        "score_b": {"type": "number"},
    },
    "required": ["winner", "reason", "score_a", "score_b"],
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


@dataclass(frozen=True, slots=True)
class Verdict:
    """On two answers: 1 if the first is better, -1 if the second is, 0 for a tie; scores in [0,1] if any were given."""

    winner: int
    scores: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Ranking:
    """Verdicts by the indices of two answers, the smaller first, on `count` answers. Pairs without one are left out."""

    count: int
    verdicts: Mapping[tuple[int, int], Verdict]
    degraded: tuple[str, ...] = ()

    @property
    def order(self) -> list[int]:
        """Most wins over losses first (Copeland's rule); a tie goes to the better score, where all have one."""
        wins = [0] * self.count
        for (a, b), verdict in self.verdicts.items():
            wins[a] += verdict.winner
            wins[b] -= verdict.winner
        scores = [self.score(i) for i in range(self.count)]
        told = [0.0 if s is None or None in scores else s for s in scores]
        return sorted(range(self.count), key=lambda i: (-wins[i], -told[i]))

    def score(self, answer: int) -> float | None:
        """The mean score of an answer over all comparisons; None where it got none."""
        given = [v.scores[pair.index(answer)] for pair, v in self.verdicts.items() if answer in pair and v.scores]
        return fmean(given) if given else None

    def points(self, answer: int, rivals: Sequence[int]) -> float | None:
        """The share of an answer's points against some others: 1 for a win, 1/2 for a tie. None: not compared."""
        won = [
            0.5 + 0.5 * verdict.winner * (1 if a == answer else -1)
            for (a, b), verdict in self.verdicts.items()
            if (a == answer and b in rivals) or (b == answer and a in rivals)
        ]
        return fmean(won) if won else None


class Judge:
    """Ranks answers of one request."""

    def __init__(self, model: Model, caller: Caller, flips: FlipRate) -> None:
        self.model, self._caller, self._flips = model, caller, flips

    async def compare(self, messages: Sequence[Message], first: str, second: str) -> Verdict | None:
        """What both orders say; a flip is a tie. None if one of them brought no verdict."""
        there, back = await asyncio.gather(self._ask(messages, first, second), self._ask(messages, second, first))
        if there is None or back is None:
            return None
        self._flips.note(flipped=there.winner == back.winner != 0)
        scores = [s for s in (there.scores, back.scores and back.scores[::-1]) if s]
        mean = (fmean(s[0] for s in scores), fmean(s[1] for s in scores)) if scores else None
        return Verdict(there.winner if there.winner == -back.winner else 0, mean)

    async def rank(self, messages: Sequence[Message], answers: Sequence[str]) -> Ranking:
        """The verdicts on all pairs that come within a round's time; none of them if the Judge is not trusted."""
        pairs = list(combinations(range(len(answers)), 2))
        calls = [self.compare(messages, answers[a], answers[b]) for a, b in pairs]
        found = await within(calls, round_s(self._caller))
        if not self._flips.trusted:
            text = f"judge: {self._flips.rate:.0%} of its verdicts change with the order; they count for nothing"
            return Ranking(len(answers), {}, (text,))
        verdicts = {pair: verdict for pair, verdict in zip(pairs, found, strict=True) if verdict is not None}
        missing = len(pairs) - len(verdicts)
        text = f"judge: {missing} of {len(pairs)} comparisons brought no verdict"
        return Ranking(len(answers), verdicts, (text,) if missing else ())

    async def _ask(self, messages: Sequence[Message], a: str, b: str) -> Verdict | None:
        """One order. None if no verdict can be had; one repair is tried."""
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


def parse_verdict(text: str) -> Verdict | None:
    """The verdict in a JSON object that may stand among other text; None if there is none. Scores may be missing."""
    start, end = text.find("{"), text.rfind("}")
    try:
        found = orjson.loads(text[start : end + 1]) if 0 <= start < end else None
    except orjson.JSONDecodeError:
        return None
    if not isinstance(found, dict):
        return None
    winner, a, b = (found.get(name) for name in ("winner", "score_a", "score_b"))
    if not isinstance(winner, str) or winner not in _WINNERS:
        return None
    return Verdict(_WINNERS[winner], (a, b) if _is_score(a) and _is_score(b) else None)


def _is_score(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
