"""The whole loop closes by itself: a few facts that only the master knows, real weights, the real learner."""

import random

import pytest

from bench.closed_loop import ROLE, Moment, Plan, closed_loop
from bench.facts import invent

FACTS = invent(random.Random(11), {"towns": 2})
QUICK = {
    "HIVEMIND_LEARN_BATCH": "6", "HIVEMIND_LEARN_WAIT_S": "5", "HIVEMIND_LEARN_ROUND_S": "10",
    "HIVEMIND_LEARN_HELD_OUT_OF": "3", "HIVEMIND_CYCLE_EVERY_S": "2", "HIVEMIND_EXPLORE": "0.2",
    "HIVEMIND_NOMINATE": "0.5",
}  # fmt: skip


def knows_them(moment: Moment) -> bool:
    return moment.held_out >= 0.5


@pytest.mark.timeout(1500)  # a step takes 2 CPU-seconds, or 11 on a machine with AVX2 alone
def test_the_courier_comes_to_know_what_only_the_master_knew() -> None:
    plan = Plan(FACTS, 11, rate=2.0, learning_s=1200.0, look_s=2.0, final=1, window=20)
    with closed_loop(plan, QUICK) as loop:
        before = loop.exam(ways=1)
        loop.learn(lambda moment: None, enough=knows_them)
        loop.stop_master()
        exam = loop.exam()
        history = loop.mesh.get("/api/adapters/events", role=ROLE)["events"]

    promoted = [e for e in history if e["kind"] == "PROMOTED"]
    assert before == 0.0
    assert promoted
    assert all(e["reason"].startswith("automatic: ") for e in promoted)
    assert loop.published
    assert exam > before  # a value is random: nobody guesses it
