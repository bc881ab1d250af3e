"""The parts of the online learner that need no process: packing, curriculum, memory, gate, state, tombstones."""

import random
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivemind.servers.orchestrator.map_keeper import HELD_OUT_COUNT, HELD_OUT_NAMES
from hivemind.servers.trainer.lesson import Lesson, Turn
from hivemind.training.encoding import Encoded
from hivemind.training.online.curriculum import Course, next_step, replay_share, reworded
from hivemind.training.online.gate import (
    GateLimits,
    HeldOut,
    Measured,
    decisive,
    figures,
    harmed,
    is_better,
    is_mastered,
    refusal,
    score,
)
from hivemind.training.online.memory import UNREAD, Bounds, Item, Memory, foreseen, is_held_out
from hivemind.training.online.model import Reading
from hivemind.training.online.state import StateFolder
from hivemind.training.stopping import StopSwitch

if TYPE_CHECKING:
    from hivemind.training.online.learner import OnlineLearner

COURSE = Course(lessons=8, replay=0.25, surprise=0.05, passes=10, tenant_share=0.5, enough=3)
LIMITS = GateLimits(questions=0.02, text=0.02, tenant=0.02, kl=1.0, gain=0.05, mastered=0.97)


def item(name: str, *, tenant: str = "t", checked: bool = False, **fields: Any) -> Item:
    lesson = Lesson(name, 1, tenant, "", (Turn("user", f"about {name}"),), "an answer", checked)
    return Item(lesson, **{"closed": 0.0, **fields})


def measured(
    losses: dict[str, list[float]], *, questions: float = 1.0, text: float = 1.0, kl: float = 0.0, exact: int = 0
) -> Measured:
    found = [(tenant, loss) for tenant, all_of in losses.items() for loss in all_of]
    held = tuple(HeldOut(str(i), tenant, Reading(loss, 1, i < exact), True) for i, (tenant, loss) in enumerate(found))
    return Measured(held, questions, text, kl)


# packing


@given(st.lists(st.lists(st.integers(0, 50), min_size=2, max_size=12), min_size=1, max_size=6), st.integers(0, 8))
def test_a_pack_holds_every_learnt_token_with_the_place_that_foretells_it(bodies: list[list[int]], shared: int) -> None:
    pytest.importorskip("torch", reason="the extra train is not installed")
    from hivemind.training.online.packing import pack

    root = [100 + i for i in range(shared)]
    samples = [Encoded((*root, *body), (*([0] * (shared + 1)), *([1] * (len(body) - 1)))) for body in bodies]

    row = pack(samples)

    ids, positions = row.ids[0].tolist(), row.positions[0].tolist()
    for sample, (begin, end) in zip(samples, row.spans, strict=True):
        learnt = [i for i in range(1, len(sample.ids)) if sample.mask[i]]
        assert row.targets[begin:end].tolist() == [sample.ids[i] for i in learnt]
        for i, source in zip(learnt, row.sources[begin:end].tolist(), strict=True):
            seen = row.mask[0, 0, source].nonzero().flatten().tolist()
            assert [ids[j] for j in sorted(seen, key=lambda j: positions[j])] == list(sample.ids[:i])
            assert sorted(positions[j] for j in seen) == list(range(i))


def test_a_packed_row_reads_like_its_samples_alone(courier: Any) -> None:
    from hivemind.training.formatting import Turn as Said
    from hivemind.training.online.model import OnlineModel

    model = OnlineModel(courier, "", rank=16, seed=0)
    asked = [("Who is the mayor of Corford?", "Ada the baker."), ("Name a colour, please.", "Blue.")]
    samples = [model.encoder.turns((Said("user", q), Said("assistant", a))) for q, a in asked]
    samples.append(model.encoder.text("The river is low in summer and high in spring."))

    alone = [model.read([s])[0] for s in samples]
    together = model.read(samples)

    assert [r.loss for r in together] == pytest.approx([r.loss for r in alone], rel=1e-4)
    assert [r.exact for r in together] == [r.exact for r in alone]


# curriculum


def test_new_lessons_go_before_those_that_were_learnt_badly_and_known_ones_are_left() -> None:
    new = [item(f"n{i}") for i in range(3)]
    bad = [item(f"b{i}", passes=3, surprise=2.0) for i in range(9)]
    known = [item(f"k{i}", passes=3, surprise=0.01, exact=True) for i in range(5)]

    step = next_step([*known, *bad, *new], COURSE, 100, random.Random(0))

    assert step is not None
    assert {i.id for i in new} <= {i.id for i in step.lessons}
    assert not {i.id for i in known} & {i.id for i in step.lessons}
    assert len(step.lessons) == 8


def test_nothing_is_left_once_all_is_known_or_has_had_its_passes() -> None:
    done = [item("a", passes=2, surprise=0.01, exact=True), item("b", passes=10, surprise=5.0)]

    assert next_step(done, COURSE, 100, random.Random(0)) is None


def test_a_tenant_that_floods_has_half_of_a_step_where_others_teach_too() -> None:
    flood = [item(f"f{i}", tenant="loud") for i in range(50)]

    alone = next_step(flood, COURSE, 100, random.Random(0))
    beside = next_step([*flood, item("q", tenant="quiet")], COURSE, 100, random.Random(0))

    assert alone is not None
    assert beside is not None
    assert len(alone.lessons) == 8
    assert sum(i.lesson.tenant == "loud" for i in beside.lessons) == 4


def test_replay_falls_from_one_a_lesson_to_its_lasting_share() -> None:
    assert replay_share(COURSE, 0) == 1.0
    assert replay_share(COURSE, 2) == pytest.approx(0.625)
    assert replay_share(COURSE, 1000) == 0.25


def test_half_of_what_is_replayed_is_what_surprised_most() -> None:
    known = [item(f"k{i}", passes=1, surprise=i / 1000, exact=True) for i in range(40)]

    step = next_step([*known, *(item(f"n{i}") for i in range(8))], COURSE, 0, random.Random(0))

    assert step is not None
    assert {i.id for i in step.replayed[:2]} == {"k39", "k38"}
    assert (len(step.replayed), step.anchors) == (4, 4)


# memory


def test_an_item_whose_answer_is_foreseen_when_it_comes_is_not_learnt_first() -> None:
    known, new = foreseen([item("a"), item("b")], [Reading(0.1, 10, True), Reading(0.1, 10, False)])

    step = next_step([known, new], replace(COURSE, lessons=1), 0, random.Random(0))

    assert (known.passes, known.exact, new) == (1, True, item("b"))
    assert step is not None
    assert step.lessons == (new,)


def test_words_that_say_what_a_question_is_about_stay_and_others_may_go() -> None:
    turns = (Turn("system", "be kind to all"), Turn("user", "please tell me who in Beladin is the 2nd mayor, ok?"))
    one = item("a")
    one = replace(one, lesson=replace(one.lesson, messages=turns, answer="The mayor of Beladin is Ada."))

    all_gone = reworded(one, 1.0, random.Random(0))
    some = {reworded(one, 0.5, random.Random(n)).lesson.messages[1].content for n in range(20)}

    assert all_gone.lesson.messages == (turns[0], Turn("user", "Beladin is the 2nd mayor,"))
    assert all_gone.lesson.answer == one.lesson.answer
    assert len(some) > 10
    assert reworded(one, 0.0, random.Random(0)) == one


@given(st.text(), st.floats(0, 1))
def test_no_question_is_emptied(text: str, drop: float) -> None:
    one = item("a")
    one = replace(one, lesson=replace(one.lesson, messages=(Turn("user", text),)))

    assert bool(reworded(one, drop, random.Random(0)).lesson.messages[0].content) == bool(text)


@pytest.mark.parametrize(
    ("passes", "surprise", "exact", "before", "after"),
    [
        (1, 0.01, True, False, False),
        (3, 0.2, True, True, False),
        (2, 0.2, True, True, True),
        (3, 0.2, False, True, True),
        (3, UNREAD, True, True, True),
        (10, 0.2, False, False, False),
    ],
)
def test_an_item_is_rehearsed_until_it_is_known_well_or_where_all_is_mastered_often_enough(
    passes: int, surprise: float, exact: bool, before: bool, after: bool
) -> None:
    one = item("a", passes=passes, surprise=surprise, exact=exact)

    assert (COURSE.is_open(one), replace(COURSE, mastered=True).is_open(one)) == (before, after)


def test_what_is_held_out_is_mastered_when_nearly_all_of_it_is_right() -> None:
    losses = {"t": [0.1] * 40}

    assert is_mastered(measured(losses, exact=39), LIMITS)
    assert not is_mastered(measured(losses, exact=38), LIMITS)
    assert not is_mastered(measured({"t": [0.1, 0.1]}, exact=2), LIMITS)


def test_about_one_in_six_is_held_out_for_ever_by_its_id() -> None:
    held = [n for n in range(6000) if is_held_out(f"p{n}", 6)]

    assert 850 < len(held) < 1150
    assert held == [n for n in range(6000) if is_held_out(f"p{n}", 6)]


@given(st.lists(st.tuples(st.integers(0, 500), st.sampled_from(["loud", "loud", "loud", "a", "b"])), max_size=120))
def test_memory_stays_within_its_bounds_and_no_tenant_drives_the_others_out(sent: list[tuple[int, str]]) -> None:
    memory = Memory(Bounds(memory=20, held_out=6, held_out_of=6, tenant_share=0.5))
    for number, tenant in sent:
        if not memory.knows(f"p{number}"):
            memory.take(item(f"p{number}", tenant=tenant))

    assert len(memory.items) <= 20
    assert len(memory.held) <= 6
    assert not memory.items.keys() & memory.held.keys()
    tenants = [i.lesson.tenant for i in memory.items.values()]
    quiet = {n for n, t in sent if t != "loud" and not is_held_out(f"p{n}", 6)}
    if len(tenants) == 20 and len(quiet) >= 10 and len(sent) == len({n for n, _ in sent}):
        assert tenants.count("loud") <= 20 - min(10, sum(t != "loud" for t in tenants))


def test_what_is_forgotten_is_gone_and_it_is_told_whether_it_had_been_learnt() -> None:
    memory = Memory(Bounds(memory=20, held_out=6, held_out_of=10**9, tenant_share=0.5))
    memory.take(item("a", passes=2))
    memory.take(item("b"))

    assert memory.forget({"b", "z"}) == (1, False)
    assert memory.forget({"a"}) == (1, True)
    assert not memory.items


def test_memory_comes_back_as_it_was_saved() -> None:
    import orjson

    bounds = Bounds(memory=20, held_out=6, held_out_of=6, tenant_share=0.5)
    memory, again = Memory(bounds), Memory(bounds)
    for i in range(15):
        memory.take(item(f"p{i}", passes=i, surprise=i / 7, exact=i % 2 == 0))

    again.load(orjson.loads(orjson.dumps(memory.to_json())))

    assert again == memory


# gate


@pytest.mark.parametrize(
    ("candidate", "words"),
    [
        (measured({"a": [1, 1, 1]}, questions=1.03), "unrelated questions rose by 3.0%"),
        (measured({"a": [1, 1, 1]}, text=1.021), "plain text rose by 2.1%"),
        (measured({"a": [1, 1, 1]}, kl=1.5), "from the champion"),
        (measured({"a": [0.1, 0.1, 0.1], "b": [2.2, 2.2, 2.2]}), "held out of b worse"),
    ],
)
def test_a_candidate_that_forgets_or_harms_a_tenant_is_refused_with_the_reason(candidate: Measured, words: str) -> None:
    champion = measured({t: [2.0] * 3 for t in {h.tenant for h in candidate.held_out}})

    assert words in refusal(candidate, champion, LIMITS)


def test_a_few_examples_that_are_read_otherwise_are_no_harm_and_many_are() -> None:
    before = measured({"a": [0.2] * 12}, exact=12)

    assert harmed(measured({"a": [0.2] * 12}, exact=10), before, LIMITS) == []
    assert harmed(measured({"a": [0.2] * 12}, exact=9), before, LIMITS) == ["a"]
    assert harmed(measured({"a": [0.2] * 11 + [3.0]}, exact=12), before, LIMITS) == []
    assert harmed(measured({"a": [0.2] * 6 + [0.6] * 6}, exact=12), before, LIMITS) == ["a"]
    assert harmed(measured({"a": [3.0] * 2}), measured({"a": [0.2] * 2}, exact=2), LIMITS) == []


def test_lessons_that_came_before_other_tenants_were_harmed_twice_are_dropped() -> None:
    memory = Memory(Bounds(memory=20, held_out=6, held_out_of=10**9, tenant_share=0.5))
    for name, tenant, closed in (("old", "loud", 1.0), ("bad", "loud", 9.0), ("mine", "quiet", 9.0)):
        memory.items[name] = item(name, tenant=tenant, passes=1, closed=closed)

    dropped = [memory.strike(5.0, {"quiet"}) for _ in range(2)]

    assert dropped == [0, 1]
    assert list(memory.items) == ["old", "mine"]


def test_lessons_that_nobody_checked_are_suspected_first() -> None:
    memory = Memory(Bounds(memory=20, held_out=6, held_out_of=10**9, tenant_share=0.5))
    for name, checked in (("wrong", False), ("right", True)):
        memory.items[name] = item(name, tenant=name, checked=checked, passes=1, closed=9.0)

    assert [memory.strike(5.0, {"quiet"}) for _ in range(3)] == [0, 1, 0]
    assert list(memory.items) == ["right"]


def test_a_candidate_with_fewer_exact_answers_than_the_champion_is_refused() -> None:
    assert "exactly" in refusal(measured({"a": [1.0] * 4}, exact=1), measured({"a": [1.0] * 4}, exact=2), LIMITS)


def test_a_candidate_within_all_limits_passes() -> None:
    champion = measured({"a": [2.0] * 4, "b": [2.0] * 4})

    assert refusal(measured({"a": [0.5] * 4, "b": [2.03] * 4}, questions=1.01, text=0.9), champion, LIMITS) == ""


def test_the_cognitive_map_finds_the_score_and_its_weight_under_the_names_that_the_gate_gives() -> None:
    found = figures(measured({"t": [1.0, 1.0]}, exact=1), measured({"t": [2.0, 2.0]}), 1.0)

    assert (found[HELD_OUT_NAMES[0]], found[HELD_OUT_COUNT]) == (0.5, 2.0)


def test_more_exact_answers_are_better_and_a_loss_that_hardly_fell_is_not() -> None:
    before = measured({"a": [1.0] * 4}, exact=1)

    assert is_better(measured({"a": [1.0] * 4}, exact=2), before, LIMITS)
    assert is_better(measured({"a": [0.9] * 4}, exact=1), before, LIMITS)
    assert not is_better(measured({"a": [0.98] * 4}, exact=1), before, LIMITS)
    assert not is_better(measured({}), measured({}), LIMITS)


def both(checked: list[float], unchecked: list[float]) -> Measured:
    found = [("quiet", loss, True) for loss in checked] + [("loud", loss, False) for loss in unchecked]
    return Measured(tuple(HeldOut(str(i), t, Reading(r, 1, r < 0.1), c) for i, (t, r, c) in enumerate(found)), 1.0, 1.0)


@pytest.mark.parametrize(
    ("checked", "unchecked", "better", "harm"),
    [
        pytest.param([0.05] * 6, [4.0] * 9, True, [], id="what is right got better and what is wrong worse"),
        pytest.param(
            [2.0] * 6, [0.05] * 9, False, ["quiet"], id="what is wrong is learnt at the cost of what is right"
        ),
        pytest.param([1.0] * 6, [0.05] * 9, True, [], id="the jury sees no difference and the others do"),
        pytest.param([1.0] * 6, [2.0] * 9, False, ["loud"], id="the jury sees no difference and the others are harmed"),
        pytest.param([0.05] * 2, [4.0] * 9, True, ["loud"], id="too few were checked"),
    ],
)
def test_held_out_examples_that_were_checked_have_the_first_word(
    checked: list[float], unchecked: list[float], better: bool, harm: list[str]
) -> None:
    before = both([1.0] * len(checked), [1.0] * 9)
    candidate = both(checked, unchecked)

    part = decisive(candidate, before, LIMITS)
    assert (is_better(*part, LIMITS), harmed(*part, LIMITS)) == (better, harm)
    assert bool(refusal(candidate, before, LIMITS)) == bool(harm)


def test_all_is_mastered_when_what_was_checked_is() -> None:
    assert is_mastered(both([0.05] * 6, [4.0] * 9), LIMITS)
    assert not is_mastered(both([0.05] * 2, [4.0] * 9), LIMITS)


def test_one_tenant_with_many_held_out_examples_does_not_outweigh_the_others() -> None:
    assert measured({"loud": [0.0] * 90, "quiet": [2.0] * 10}).loss == pytest.approx(1.0)


@given(st.floats(0, 10), st.floats(0, 10), st.booleans(), st.booleans())
def test_scores_of_a_pair_add_up_to_one_whoever_goes_first(a: float, b: float, x: bool, y: bool) -> None:
    mine, theirs = Reading(a, 1, x), Reading(b, 1, y)

    if x != y:
        assert score(mine, theirs) + score(theirs, mine) == 1.0
    if x and y:
        assert score(mine, theirs) == 0.5


# state


def test_a_state_half_written_is_never_taken_for_one(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="the extra train is not installed")

    folder = StateFolder(tmp_path)
    folder.save({"n": 1}, {"w": torch.ones(2)})
    folder.save({"n": 2}, None)  # the weights stay
    torn = tmp_path / ".00000003"
    torn.mkdir()
    (torn / "learner.json").write_text("{")

    found = StateFolder(tmp_path).load()

    assert found is not None
    assert found[0] == {"n": 2}
    assert found[1]["w"].tolist() == [1.0, 1.0]
    assert [p.name for p in tmp_path.iterdir()] == ["00000002"]


def test_a_publication_handed_over_before_a_kill_is_gone_on_from_and_not_written_over(
    tiny_base: Path, tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch", reason="the extra train is not installed")
    learner = learner_with_a_publication_that_was_not_saved(tiny_base, tmp_path, StopSwitch())
    learner.save()

    record, tensors = StateFolder(tmp_path / "state").load() or ({}, {})
    assert record["progress"]["number"] == 1
    published = {n: w for n, w in tensors.items() if n.startswith("published.")}
    assert published
    assert all(torch.allclose(w, torch.full_like(w, 0.1)) for w in published.values())


def test_a_learner_told_to_end_within_a_check_saves_what_it_has(tiny_base: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the extra train is not installed")

    class ThrownWithinTheCheck(StopSwitch):
        def check(self) -> None:
            self.wanted = True
            super().check()

    learner_with_a_publication_that_was_not_saved(tiny_base, tmp_path, ThrownWithinTheCheck()).run()

    record, tensors = StateFolder(tmp_path / "state").load() or ({}, {})
    assert record["progress"]["number"] == 1
    assert any(n.startswith("published.") for n in tensors)


def learner_with_a_publication_that_was_not_saved(base: Path, folder: Path, stop: StopSwitch) -> "OnlineLearner":
    import torch

    from hivemind.training.adapter_files import AdapterMeta
    from hivemind.training.base_model import Base
    from hivemind.training.online.inbox import Inbox
    from hivemind.training.online.learner import Desk, OnlineLearner
    from hivemind.training.online.model import OnlineModel
    from hivemind.training.online.publication import Champion, Outbox
    from hivemind.training.online.settings import OnlineSettings
    from hivemind.training.online.tombstones import Tombstones

    model = OnlineModel(Base("courier", base, ""), "", rank=16, seed=0)
    outbox = Outbox(folder)
    meta = AdapterMeta("implementer", "courier", "", "", 1, 2, "CC0-1.0", {}, {})
    learnt = {n: torch.full_like(w, 0.1) for n, w in model.champion.items()}
    with model.as_of(learnt):
        outbox.publish(1, model.model, model.tokenizer, meta, run="r", closed=0.0, outcomes=())
    away = Inbox("redis://127.0.0.1:1/0", "implementer", timeout_s=0.1)
    desk = Desk(away, outbox, StateFolder(folder / "state"), Tombstones(folder / "none"), stop)
    return OnlineLearner(model, desk, OnlineSettings(home=folder), "implementer", Champion())
