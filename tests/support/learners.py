"""Online learners for tests: the real process, on the tiny model or on the courier, and examples for it."""

import asyncio
import json
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from hivemind.v1 import common_pb2
from hivemind.v1 import trainer_pb2 as pb
from tests.support.trainer_rig import Rig

QUICK = {
    "HIVEMIND_LEARN": "true",
    "HIVEMIND_LEARN_POLL_S": "0.05",
    "HIVEMIND_LEARN_RETRY_S": "0.1",
    "HIVEMIND_LEARN_CHAMPION_S": "0.2",
    "HIVEMIND_LEARN_WAIT_S": "1",
    "HIVEMIND_LEARN_ROUND_S": "2",
    "HIVEMIND_LEARN_RATE": "0.01",
    "HIVEMIND_LEARN_PASSES": "30",
    "HIVEMIND_LEARN_MIN_GAIN": "0.001",
    "HIVEMIND_LEARN_MAX_QUESTIONS": "1",
    "HIVEMIND_LEARN_MAX_TEXT": "1",
    "HIVEMIND_LEARN_MAX_TENANT": "1",
    "HIVEMIND_LEARN_MAX_KL": "100",
    "HIVEMIND_LEARN_OUTLIER": "100",
}
WORDS = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heron", "iris", "juniper", "kelp", "lotus")


def example(
    number: int, *, tenant: str = "", answer: str = "", question: str = "", checked: bool = False
) -> pb.TrainingExample:
    """An example with an id, a sequence and a question of its own."""
    rng = random.Random(number)
    asked = question or f"What is the word of {' '.join(rng.sample(WORDS, 3))} {number}?"
    return pb.TrainingExample(
        platinum_id=f"p{number}", sequence=number, tenant=tenant, answer=answer or f"It is {rng.choice(WORDS)}.",
        checked=checked, messages=[common_pb2.ChatMessage(role="user", content=asked)],
    )  # fmt: skip


async def submit(rig: Rig, examples: Sequence[pb.TrainingExample], **fields: Any) -> pb.SubmitExamplesResponse:
    request = pb.SubmitExamplesRequest(examples=examples, **fields)
    return await rig.stub.SubmitExamples(request, timeout=10)


async def learner(rig: Rig) -> pb.OnlineLearner:
    return await rig.stub.GetLearner(pb.GetLearnerRequest(), timeout=10)


async def until_learner(
    rig: Rig, condition: Callable[[pb.OnlineLearner], bool], *, within_s: float = 90.0
) -> pb.OnlineLearner:
    """The learner when the condition holds of it."""
    end = time.monotonic() + within_s
    while True:
        now = await learner(rig)
        if condition(now):
            return now
        assert time.monotonic() < end, f"it did not come to that: {now}"
        await asyncio.sleep(0.1)


def learner_process(home: Path) -> psutil.Process | None:
    """The process that learns in a state folder."""
    for process in psutil.process_iter():
        try:
            if "hivemind.training.online" in process.cmdline() and process.cwd().startswith(str(home)):
                return process
        except psutil.Error:
            continue
    return None


def saved(home: Path) -> dict[str, Any]:
    """The newest state that is whole."""
    newest = max((home / "learner" / "implementer" / "state").glob("[0-9]*"))
    found: dict[str, Any] = json.loads((newest / "learner.json").read_text())
    return found
