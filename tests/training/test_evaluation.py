import json
from dataclasses import replace
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from hivemind.training.control_set import control_set
from hivemind.training.evaluation import Evaluation, SampleAnswer, Score, check_gates
from hivemind.training.report import write_report
from hivemind.training.sft_config import Gates


def scores(heldout: float, questions: float = 1.0, text: float = 1.0) -> dict[str, Score]:
    parts = {"heldout": heldout, "questions": questions, "text": text}
    return {name: Score(loss, 0.5, 100) for name, loss in parts.items()}


def failed(candidate: dict[str, Score], champion: dict[str, Score] | None = None, **gates: float) -> list[str]:
    found = {"base": scores(2.0), "candidate": candidate} | ({"champion": champion} if champion else {})
    return [g.name for g in check_gates(found, None, replace(Gates(), **gates)) if not g.passed]


def test_a_candidate_that_is_better_and_forgets_nothing_passes() -> None:
    assert failed(scores(1.0, 1.01, 1.019), scores(1.0), min_gain=0.35) == []


def test_each_gate_fails_by_itself() -> None:
    assert failed(scores(2.1)) == ["held-out gain over the base"]
    assert failed(scores(1.0, questions=1.03)) == ["rise of the loss on unrelated questions"]
    assert failed(scores(1.0, text=1.03)) == ["rise of the loss on plain text"]
    assert failed(scores(1.5), scores(1.4)) == ["held-out loss over the champion"]


def test_a_win_rate_counts_only_where_a_judge_gave_one() -> None:
    both = {"base": scores(2.0), "candidate": scores(1.0)}
    assert [g.passed for g in check_gates(both, 0.4, Gates())] == [True, True, True, False]
    assert len(check_gates(both, None, Gates())) == 3


@given(st.floats(0.01, 10), st.floats(0.01, 10))
def test_the_gain_is_the_share_by_which_the_loss_fell(base: float, candidate: float) -> None:
    found = check_gates({"base": scores(base), "candidate": scores(candidate)}, None, Gates())
    assert abs(found[0].value - (base - candidate) / base) < 1e-9


def test_the_report_says_what_was_measured_in_all_three_files(tmp_path: Path) -> None:
    both = {"base": scores(2.0), "candidate": scores(2.5)}
    sample = SampleAnswer("Who?", "Ada.", "A\nking.", "Ada.", 0.01, 0.02)
    evaluation = Evaluation(both, (sample,), None, check_gates(both, None, Gates()))
    write_report(tmp_path, evaluation, {1: 2.0, 2: 1.5})
    assert json.loads((tmp_path / "evaluation.json").read_text())["scores"]["candidate"]["heldout"]["loss"] == 2.5
    told = (tmp_path / "evaluation.md").read_text()
    assert "**Rejected**" in told
    assert "| held-out gain over the base | -0.2500 | 0.0000 | failed |" in told
    assert "- **base (10 ms a token)**: A king." in told
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_no_control_text_is_ever_replayed() -> None:
    known = control_set()
    assert len(known.control_questions) == 20
    assert len(known.control_texts) == 12
    assert not set(known.control_questions) & set(known.replay_questions)
    assert not set(known.control_texts) & set(known.replay_texts)
