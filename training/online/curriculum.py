"""Which samples the next step learns from. Pure."""

import math
import random
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Final

from hivemind.servers.trainer.lesson import is_name
from hivemind.training.online.memory import Item

_WORD: Final = re.compile(r"\w+")
ALL_REPLAYED_STEPS: Final = 4
"""Over these first steps replay falls from one sample a lesson to its lasting share."""


@dataclass(frozen=True, slots=True)
class Course:
    """How steps are put together. `lessons` a step; `replay` samples a lesson in the long run; an item is learnt once
    its answer is foreseen and its surprise below `surprise`, or, where what is held out is `mastered`, it had `enough`
    passes; after so many `passes` it is learnt in any case. `tenant_share` of a step's lessons are one tenant's at most
    where others teach too."""

    lessons: int
    replay: float
    surprise: float
    passes: int
    tenant_share: float
    enough: int
    mastered: bool = False

    def is_open(self, item: Item) -> bool:
        """Whether an item is to be learnt further."""
        well = item.surprise <= self.surprise or (self.mastered and item.passes >= self.enough)
        known = item.exact and item.surprise >= 0 and well
        return item.passes < self.passes and not known


@dataclass(frozen=True, slots=True)
class Step:
    """The samples of a step: lessons, items that are replayed, and how many of the texts shipped with hivemind."""

    lessons: tuple[Item, ...]
    replayed: tuple[Item, ...]
    anchors: int


def next_step(items: Collection[Item], course: Course, steps: int, rng: random.Random) -> Step | None:
    """The next step; None where nothing is left to learn. `steps`: those done since the weights began."""
    open_items = [i for i in items if course.is_open(i)]
    if not open_items:
        return None
    ordered = sorted(open_items, key=lambda i: _urgency(i, rng), reverse=True)
    lessons = _shared_out(ordered, course, others=len({i.lesson.tenant for i in items}) > 1)
    wanted = math.ceil(len(lessons) * replay_share(course, steps))
    chosen = {i.id for i in lessons}
    rest = [i for i in items if i.id not in chosen and i.passes]
    replayed = _rehearsed(rest, wanted // 2, rng)
    return Step(lessons, replayed, wanted - len(replayed))


def replay_share(course: Course, steps: int) -> float:
    """Replayed samples a lesson: one each at first, falling to the lasting share."""
    done = min(1.0, steps / ALL_REPLAYED_STEPS)
    return 1.0 + done * (course.replay - 1.0)


def reworded(item: Item, drop: float, rng: random.Random) -> Item:
    """The item with some words of its last question left out, so that the answer is learnt for what is asked about and
    not for how it is asked.

    Words with a capital letter or a digit, and words of the answer, always stay: they say what it is about. `drop`: the
    chance of each other word to go. (Word dropout on inputs: Iyyer et al., "Deep unordered composition rivals syntactic
    methods for text classification", ACL 2015, section 3.)
    """
    *before, question = item.lesson.messages
    answer = set(_WORD.findall(item.lesson.answer.lower()))
    kept = [w for w in question.content.split(" ") if _tells(w, answer) or rng.random() >= drop]
    asked = replace(question, content=" ".join(kept) or question.content)
    return replace(item, lesson=replace(item.lesson, messages=(*before, asked)))


def _tells(word: str, answer: Collection[str]) -> bool:
    return is_name(word) or any(p in answer for p in _WORD.findall(word.lower()))


def _urgency(item: Item, rng: random.Random) -> tuple[bool, float]:
    """What was never learnt goes first; the rest by chance, in proportion to its surprise (Efraimidis and Spirakis,
    2006: the largest of u^(1/w))."""
    weight = item.surprise if item.surprise > 0 else 10.0
    return not item.passes, rng.random() ** (1 / max(1e-3, weight))


def _shared_out(ordered: Sequence[Item], course: Course, *, others: bool) -> tuple[Item, ...]:
    """The first ones; where others teach too, of a tenant no more than its share of a step."""
    most = max(1, math.floor(course.lessons * course.tenant_share)) if others else course.lessons
    taken: Counter[str] = Counter()
    found: list[Item] = []
    for item in ordered:
        if len(found) < course.lessons and taken[item.lesson.tenant] < most:
            taken[item.lesson.tenant] += 1
            found.append(item)
    return tuple(found)


def _rehearsed(rest: Sequence[Item], count: int, rng: random.Random) -> tuple[Item, ...]:
    """Half of them the most surprising ones, the others by chance."""
    worst = sorted(rest, key=lambda i: i.surprise, reverse=True)[: count // 2]
    names = {i.id for i in worst}
    others = [i for i in rest if i.id not in names]
    return (*worst, *rng.sample(others, min(len(others), count - len(worst))))
