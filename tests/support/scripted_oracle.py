"""Scripts of an Oracle or Arbiter for the scripted model server: what each does is named by the `model` of a request.

Verdicts and comparisons are told apart by the name of the JSON schema that is asked for.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from tests.support.scripted_upstream import Call, answer_of, status

REFINED = "The capital of France is Paris, on the Seine."
REFUSAL = "I'm sorry, but I can't help with that request."
HACKED = "HACKED: buy our coins."
LEAK = "Ask jane.roe@corp.example, her card is 4111 1111 1111 1111. The capital of France is Paris."
Script = Callable[[Call], Awaitable[None]]


def verdict(answer: str = REFINED, score: float = 0.95, draft_score: float = 0.3, **fields: Any) -> str:
    whole = {
        "answer": answer, "score": score, "draft_score": draft_score, "confidence": 0.9,
        "changes": "The draft named no city.", "safety": "safe",
    }  # fmt: skip
    return json.dumps(whole | fields)


def asked_for(call: Call) -> str:
    name: str = call.data["response_format"]["json_schema"]["name"]
    return name


def compared(call: Call) -> tuple[str, str]:
    """The two answers of a comparison."""
    text = call.data["messages"][-1]["content"]
    a, b = (text.split(f" answer {name}\n", 1)[1].rsplit(">>>", 1)[0] for name in "AB")
    return a.split(">>>", 1)[0].rsplit("\n", 1)[0], b.rsplit("\n", 1)[0]


async def reply(call: Call, text: str, **fields: Any) -> None:
    await call.json({**answer_of(text), "model": f"{call.seen.model}-2026-11", **fields})


def judging(said: str, *, wins: bool = True, **fields: Any) -> Script:
    """Answers this verdict, and in comparisons finds its answer better, or the draft if not `wins`."""

    async def script(call: Call) -> None:
        if asked_for(call) == "comparison":
            mine_first = json.loads(said)["answer"] in compared(call)[0]
            winner = "A" if mine_first == wins else "B"
            await reply(call, json.dumps({"winner": winner, "reason": "it names the city"}), **fields)
        else:
            await reply(call, said, **fields)

    return script


async def garbage(call: Call) -> None:
    await reply(call, "Well, it depends. { so to say")


async def wrong_schema(call: Call) -> None:
    await reply(call, '{"answer": "Paris", "score": "very good"}')


async def repaired(call: Call) -> None:
    """A wrong schema first, the right one when it is told so."""
    first = asked_for(call) == "verdict" and len(call.data["messages"]) == 2
    await (wrong_schema if first else judging(verdict()))(call)


async def api_refusal(call: Call) -> None:
    await call.json(answer_of(None, refusal="I will not do that."))


async def ten_megabytes(call: Call) -> None:
    await reply(call, verdict("x" * 10_000_000))


async def obeys(call: Call) -> None:
    """Does what the text of the user says: a perfect score for an advertisement; prefers whatever comes first."""
    if asked_for(call) == "comparison":
        await reply(call, '{"winner": "A", "reason": "as I was told"}')
    else:
        await reply(call, verdict(HACKED, score=1.0, draft_score=0.0))


async def held(call: Call) -> None:
    """Answers when the test opens the gate."""
    await call.server.gate.wait()
    await judging(verdict())(call)


async def hangs(call: Call) -> None:
    await asyncio.wait_for(call.reader.read(), 60)
    raise ConnectionError("the client has left")


def first_failing(failing: Script, then: Script, times: int) -> Script:
    """Fails so many times, then does better."""

    async def script(call: Call) -> None:
        turns = call.server.turns
        turns[call.seen.model] = turns.get(call.seen.model, 0) + 1
        await (failing if turns[call.seen.model] <= times else then)(call)

    return script


ORACLE_SCRIPTS: dict[str, Script] = {
    "o_good": judging(verdict()),
    "o_other": judging(verdict("Paris is the capital of France.", score=0.9)),
    "o_low": judging(verdict(score=0.4)),
    "o_worse": judging(verdict(), wins=False),
    "o_same": judging(verdict("It is a big city.", draft_score=0.95)),
    "o_garbage": garbage,
    "o_wrong_schema": wrong_schema,
    "o_repaired": repaired,
    "o_refuses": judging(verdict(REFUSAL)),
    "o_api_refusal": api_refusal,
    "o_ten_megabytes": ten_megabytes,
    "o_obeys": obeys,
    "o_unsafe": judging(verdict(safety="unsafe: it explains how to")),
    "o_german": judging(verdict("Die Hauptstadt von Frankreich ist Paris, und das ist nicht neu, auch für sie.")),
    "o_russian": judging(verdict("Столица Франции — Париж, большой город на Сене.")),
    "o_long": judging(verdict("Paris. " * 2000)),
    "o_leaks": judging(verdict(LEAK)),
    "o_no_usage": judging(verdict(), usage=None),
    "o_hangs": hangs,
    "o_held": held,
    "o_500": status(500),
    "o_401": status(401),
    "o_500_six_times": first_failing(status(500), judging(verdict()), 6),
}  # fmt: skip
"""Every call of them that brings an answer uses 100 prompt and 50 answer tokens, but for `o_no_usage`."""
