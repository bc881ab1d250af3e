"""The quality gate as it is checked in: what it says of prompts, and that it cannot hurt."""

import csv
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from hivemind.servers.router.gate.features import Features
from hivemind.servers.router.gate.model import (
    FAR_GAIN,
    GENERIC,
    MODEL_FILE,
    TABLE_FILE,
    Estimate,
    Gate,
    calibrated,
    far_gain,
    load_pairs,
)
from hivemind.servers.router.gate.taxonomy import Taxonomy
from hivemind.servers.router.gate.wordpiece import PieceTable
from hivemind.training.router_gate import apgr, calibration, calibration_error, interval


@pytest.fixture(scope="module")
def gate() -> Gate:
    return Gate()


@pytest.mark.parametrize(
    ("prompt", "domain"),
    [
        ("Write a Python function that reverses a list.", "code"),
        ("Solve the equation 3x + 4 = 19 for x.", "math"),
        ("Who painted the Mona Lisa?", "facts"),
        ("The plaintiff sued the defendant for breach of contract. Will the court find for the plaintiff?", "law"),
        ("A patient presents with fever; which drug treats this infection?", "medicine"),
        ("Translate this sentence and rewrite it as a poem.", "writing"),
    ],
)
def test_a_prompt_is_put_in_the_domain_that_a_person_would_name(prompt: str, domain: str) -> None:
    assert Taxonomy().classify(prompt) == domain


def test_an_operator_adds_a_domain_by_its_words() -> None:
    assert Taxonomy({"sailing": ["jib", "halyard"]}).classify("Which halyard hoists the jib?") == "sailing"


def test_words_are_cut_as_berts_tokenizer_cuts_them() -> None:
    table = PieceTable(TABLE_FILE)
    names = list(table.index)

    assert [names[i] for i in table.pieces("Unbelievable naïveté, isn't it?")] == [
        "unbelievable", "naive", "##te", ",", "isn", "'", "t", "it", "?",
    ]  # fmt: skip


def test_the_same_prompt_gets_the_same_estimate_and_probabilities_are_probabilities(gate: Gate) -> None:
    for prompt in ("", "Hello", "x" * 20_000, "\udcff lone surrogate", "数学の問題を解いてください"):
        first, again = gate.estimate(prompt), Gate().estimate(prompt)
        assert first == again
        assert 0 < first.weak < 1
        assert 0 < first.strong < 1
        assert 0 < first.unknown <= 1


def test_a_domain_without_training_data_is_unknown_and_goes_to_the_stronger_model(gate: Gate) -> None:
    estimate = gate.estimate("Write a Python function that parses a cron expression.", "open9")
    pair = gate.pairs["open9"]
    unseen = type(estimate)(estimate.weak, estimate.weak, 1.0, "never seen")

    assert pair.seen["code"] > 100
    assert unseen.need == FAR_GAIN


def test_code_needs_the_strong_model_more_than_trivia(gate: Gate) -> None:
    code = gate.estimate("Write a python function to find the longest palindromic substring of a string.", "open9")
    trivia = gate.estimate("Who was the first man on the moon?", "open9")

    assert code.need > trivia.need


def test_an_artefact_of_other_features_is_refused() -> None:
    with pytest.raises(ValueError, match="train it again"):
        load_pairs(MODEL_FILE, Features(PieceTable(TABLE_FILE)).names[:-1])


def test_the_artefacts_stay_below_8_megabytes() -> None:
    assert TABLE_FILE.stat().st_size + MODEL_FILE.stat().st_size < 8_000_000


def test_score_reads_and_writes_csv(tmp_path: Path) -> None:
    source, target = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text('row_id,prompt\na,"What is 2+2?"\nb,"Prove, step by step,\nthat 7 is prime."\n')
    command = [sys.executable, "-m", "hivemind.training.router_gate", "score", str(source), str(target)]
    subprocess.run(command, check=True, timeout=60)

    rows = list(csv.DictReader(target.open()))
    assert [r["row_id"] for r in rows] == ["a", "b"]
    assert all(0 <= float(r["p_strong"]) <= 1 for r in rows)


def test_apgr_is_a_half_for_a_constant_and_agrees_with_a_sum_by_hand() -> None:
    y = np.array([[0, 1], [1, 1], [0, 1], [1, 0]], dtype=float)

    assert apgr(np.zeros(4), y) == pytest.approx(0.5)
    assert apgr(np.array([4.0, 3, 2, 1]), y) == pytest.approx(1.125)


def test_calibration_mends_a_head_that_was_wrong_by_its_value() -> None:
    rng = np.random.default_rng(0)
    p = rng.uniform(0.05, 0.95, (20_000, 2))
    truth = np.column_stack([p[:, 0] ** 2, p[:, 1]])
    labels = (rng.random(p.shape) < truth).astype(float)
    mended = calibrated(p, calibration(p, labels))

    assert calibration_error(p[:, 0], labels[:, 0]) > 0.1
    assert np.abs(mended - truth).max() < 0.06
    assert calibration_error(mended[:, 0], labels[:, 0]) < 0.02


def test_unknown_territory_counts_as_a_gain_that_moves_with_what_the_other_recordings_saw(gate: Gate) -> None:
    assert far_gain(np.array([0.0, 0.2, 5.0])) == pytest.approx([FAR_GAIN, FAR_GAIN + 0.2, 1.0])
    assert Estimate(0.5, 0.5, 1.0, "never seen", far=0.7).need == 0.7

    prompts = [f"Write a python function that finds the {n}th prime." for n in range(3)] + ["Who wrote Hamlet?"]
    assert len({gate.estimate(p, "open9").far for p in prompts}) > 1
    assert {gate.estimate(p).far for p in prompts} == {FAR_GAIN}


def test_an_interval_leaves_out_draws_without_a_gap() -> None:
    low, high = interval(np.array([3.0, 2, 1]), np.array([[0, 1], [1, 0], [0, 1]], dtype=float))

    assert np.isfinite([low, high]).all()


def test_an_estimate_for_a_pair_that_was_never_recorded_is_between_those_that_were(gate: Gate) -> None:
    prompt = f"Who wrote Hamlet? ({time.time()})"
    known = [gate.estimate(prompt, pair).weak for pair in gate.pairs]

    assert min(known) <= gate.estimate(prompt, GENERIC).weak <= max(known)
