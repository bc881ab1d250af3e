"""The strategies of several calls. Each gets a task and a Caller, and answers with one text; they know no transport."""

import re
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from hivemind.servers.common.catalogue import Model
from hivemind.servers.router.judge import Judge, Ranking
from hivemind.servers.router.records import Judged
from hivemind.servers.router.roles import Caller, Message, Reply, RoleFailed, instructed, prompt
from hivemind.servers.router.rounds import attempted, quorum, round_s, why, within
from hivemind.servers.router.selector import ITEMS_MAX, PROPOSERS, ROUNDS, VOTES

TOP_K: Final = 2
CONFIDENT_ABOVE: Final = 0.75
"""Mean token probability from which a cascade keeps the first model's answer."""
SAMPLING: Final = 0.7
_BOXED: Final = re.compile(r"\\boxed\{([^{}]*)\}")
_ANSWER: Final = re.compile(r"\banswer\s*(?:is)?\s*[:=]?\s*\**\s*(.+)", re.I)
_NUMBER: Final = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_CHOICE: Final = re.compile(r"^\W*([A-J])\b(?:\W|$)")


@dataclass(frozen=True, slots=True)
class Task:
    """What is to be answered, by which models. `judge` is None where none is configured."""

    messages: Sequence[Message]
    model: Model
    team: tuple[Model, ...]
    subtasks: tuple[str, ...]
    judge: Judge | None


@dataclass(slots=True)
class Outcome:
    """The answer, which model gave its last word, and what went wrong on the way.

    `agreement`: the share of the answers that agree with it, None where they were not compared; `alternatives`: others;
    `judged`: how the Judge found the answers that this one was made of.
    """

    text: str
    alias: str
    degraded: list[str] = field(default_factory=list)
    finish_reason: str = "stop"
    agreement: float | None = None
    alternatives: tuple[str, ...] = ()
    judged: tuple[Judged, ...] = ()


Strategy = Callable[[Task, Caller], Awaitable[Outcome]]


async def cascade(task: Task, caller: Caller) -> Outcome:
    """The small model first; its own confidence decides whether the large one answers (Chen et al. 2023, FrugalGPT)."""
    (first,) = await within([attempted(caller.ask("proposer", task.model, task.messages))], round_s(caller))
    if not isinstance(first, Reply):
        second = await caller.speak("worker", task.team[0], task.messages)
        return Outcome(second.text, second.alias, [f"cascade: the first call {why(first)}"], second.finish_reason)
    if first.confidence is not None and first.confidence >= CONFIDENT_ABOVE:
        return Outcome(first.text, first.alias, finish_reason=first.finish_reason)
    sure = "no confidence was told" if first.confidence is None else f"confidence {first.confidence:.2f}"
    caller.progress("critic", f"{first.alias} is not sure ({sure}); asking {task.team[0].alias}")
    try:
        second = await caller.speak("worker", task.team[0], task.messages)
    except RoleFailed as error:
        return Outcome(
            first.text, first.alias, [f"cascade: {error}; {first.alias} answered alone"], first.finish_reason
        )
    return Outcome(second.text, second.alias, finish_reason=second.finish_reason)


async def vote(task: Task, caller: Caller) -> Outcome:
    """Samples of one model; the answer that most of them come to (Wang et al. 2022, self-consistency)."""
    ask = prompt("propose")
    asked = instructed(task.messages, ask)
    calls = [caller.ask("proposer", task.model, asked, prompt=ask, temperature=SAMPLING) for _ in range(VOTES)]
    replies, degraded = await quorum(calls, need=VOTES // 2 + 1, caller=caller, what="vote")
    counted = Counter(extract(r.text) for r in replies)
    winner, votes = counted.most_common(1)[0]
    caller.progress("critic", f"{votes} of {len(replies)} samples agree")
    return _by_majority(replies, winner, degraded)


async def committee(task: Task, caller: Caller) -> Outcome:
    """Three proposers, judged in pairs, the best fused (Jiang et al. 2023, LLM-Blender; Wang et al. 2024)."""
    ask = prompt("propose")
    asked = instructed(task.messages, ask)
    calls = [caller.ask("proposer", m, asked, prompt=ask, temperature=SAMPLING) for m in task.team]
    replies, degraded = await quorum(calls, need=2, caller=caller, what="committee")
    ranking = await _ranked(task, caller, [r.text for r in replies])
    degraded += ranking.degraded
    judged = tuple(_judged(ranking, [r.alias for r in replies]))
    best = [replies[i].text for i in ranking.order[:TOP_K]]
    caller.progress("merger", f"fusing the best {len(best)}")
    merge = prompt("merge")
    try:
        fused = await caller.speak("merger", task.model, instructed(task.messages, merge, *best), prompt=merge)
    except RoleFailed as error:
        winner = replies[ranking.order[0]]
        degraded.append(f"merger: {error}; the best proposal was taken")
        return Outcome(winner.text, winner.alias, degraded, judged=judged)
    return Outcome(fused.text, fused.alias, degraded, alternatives=tuple(best), judged=judged)


async def debate(task: Task, caller: Caller) -> Outcome:
    """Three agents, two rounds, ends as soon as they agree (Du et al. 2023)."""
    ask = prompt("propose")
    asked = instructed(task.messages, ask)
    calls = [caller.ask("proposer", task.model, asked, prompt=ask, temperature=SAMPLING) for _ in range(PROPOSERS)]
    replies, degraded = await quorum(calls, need=2, caller=caller, what="debate")
    for number in range(2, ROUNDS + 1):
        if len({extract(r.text) for r in replies}) == 1:
            caller.progress("critic", "all agents agree")
            break
        caller.progress("critic", f"round {number}: {len(replies)} agents weigh each other's answers")
        debating = prompt("debate")
        again = []
        for i, reply in enumerate(replies):
            others = [r.text for j, r in enumerate(replies) if j != i]
            said = [*asked, {"role": "assistant", "content": reply.text}]
            again.append(caller.ask("critic", task.model, instructed(said, debating, *others), prompt=debating))
        try:
            replies, more = await quorum(again, need=1, caller=caller, what="debate")
            degraded += more
        except RoleFailed as error:
            degraded.append(f"debate ended after round {number - 1}: {error}")
            break
    winner = Counter(extract(r.text) for r in replies).most_common(1)[0][0]
    return _by_majority(replies, winner, degraded)


async def clone_dispatch(task: Task, caller: Caller) -> Outcome:
    """Independent parts, answered by clones of one model at the same time, then joined."""
    parts, degraded = (list(task.subtasks), []) if task.subtasks else await _split(task, caller)
    if len(parts) < 2:
        only = await caller.speak("worker", task.model, task.messages)
        return Outcome(only.text, only.alias, degraded)
    caller.progress("worker", f"{len(parts)} parts at the same time")
    earlier = task.messages[:-1]
    calls = [
        attempted(caller.ask("worker", task.model, [*earlier, {"role": "user", "content": part}])) for part in parts
    ]
    answers = await within(calls, round_s(caller))
    failed = [
        f"part {i} ({part[:60]!r}) {why(a)}" for i, (part, a) in enumerate(zip(parts, answers, strict=True), 1)
        if not isinstance(a, Reply)
    ]  # fmt: skip
    if len(failed) == len(parts):
        raise RoleFailed("; ".join(failed))
    degraded += failed
    told = [f"{p}\n-> {a.text if isinstance(a, Reply) else '(no answer)'}" for p, a in zip(parts, answers, strict=True)]
    join = prompt("join")
    room = max(200, 5_000 // len(told))
    try:
        whole = await caller.speak(
            "merger", task.model, instructed(task.messages, join, *(t[:room] for t in told)), prompt=join
        )
    except RoleFailed as error:
        degraded.append(f"merger: {error}; the parts stand as they are")
        return Outcome("\n\n".join(told), task.model.alias, degraded)
    return Outcome(whole.text, whole.alias, degraded)


BY_NAME: Final[Mapping[str, Strategy]] = {
    "cascade": cascade, "vote": vote, "committee": committee, "debate": debate, "clone_dispatch": clone_dispatch,
}  # fmt: skip


def extract(text: str) -> str:
    """The final answer in a text, made comparable: a boxed one, one behind "Answer:", a choice, the last number."""
    boxed = _BOXED.findall(text)
    marked = _ANSWER.findall(text)
    found = (boxed or marked or [text])[-1].strip().strip("*_`. ").splitlines()
    line = found[0] if found else ""
    choice = _CHOICE.match(line)
    if choice:
        return str(choice.group(1))
    numbers = _NUMBER.findall(line if boxed or marked else text)
    if numbers:
        return str(numbers[-1]).replace(",", "").removesuffix(".0")
    return re.sub(r"\W+", " ", line).strip().lower()


def _by_majority(replies: Sequence[Reply], winner: str, degraded: list[str]) -> Outcome:
    """The first reply that comes to the answer of most; one of each other answer is kept beside it."""
    others: dict[str, str] = {}
    agreeing = [r for r in replies if extract(r.text) == winner]
    for reply in replies:
        others.setdefault(extract(reply.text), reply.text)
    others.pop(winner)
    return Outcome(
        agreeing[0].text, agreeing[0].alias, degraded,
        agreement=len(agreeing) / len(replies), alternatives=tuple(others.values()),
    )  # fmt: skip


async def _ranked(task: Task, caller: Caller, texts: Sequence[str]) -> Ranking:
    if task.judge is None:
        return Ranking(len(texts), {}, ("no judge is configured: the committee's answers were not ranked",))
    caller.progress("judge", f"comparing {len(texts)} answers")
    return await task.judge.rank(task.messages, texts)


def _judged(ranking: Ranking, aliases: Sequence[str]) -> Iterator[Judged]:
    """How each answer fared against all others, and against those of other aliases."""
    for i, alias in enumerate(aliases):
        points = ranking.points(i, range(len(aliases)))
        if points is not None:
            rivals = [j for j, other in enumerate(aliases) if other != alias]
            yield Judged(alias, points, ranking.points(i, rivals), ranking.score(i))


async def _split(task: Task, caller: Caller) -> tuple[list[str], list[str]]:
    """The parts, none where there are no two, and what went wrong."""
    splitting = prompt("split")
    call = caller.ask(
        "proposer", task.model, instructed(task.messages, splitting), prompt=splitting, temperature=0.0, schema=PARTS
    )
    (reply,) = await within([attempted(call)], round_s(caller))
    if not isinstance(reply, Reply):
        return [], [f"clone_dispatch: the call that splits the task {why(reply)}; it was answered whole"]
    start, end = reply.text.find("{"), reply.text.rfind("}")
    try:
        found = orjson.loads(reply.text[start : end + 1]) if 0 <= start < end else {}
    except orjson.JSONDecodeError:
        found = {}
    parts = found.get("parts") if isinstance(found, dict) else None
    texts = [p for p in parts if isinstance(p, str) and p.strip()] if isinstance(parts, list) else []
    return texts[:ITEMS_MAX], []


PARTS: Final[Mapping[str, Any]] = {
    "type": "object",
    "properties": {"parts": {"type": "array", "items": {"type": "string"}, "maxItems": ITEMS_MAX}},
    "required": ["parts"],
    "additionalProperties": False,
}
