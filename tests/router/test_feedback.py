"""What an opinion is held against."""

from dataclasses import replace

from hivemind.servers.router.feedback import expected_quality
from hivemind.servers.router.records import Call, Candidate, Record

RECORD = Record(
    "r1", 0.0, "t1", "", "OPENAI", "auto", chosen_model="courier",
    candidates=(Candidate("single", "courier", 0, 0.3), Candidate("single", "panel", 9, 0.7, rejected_because="x")),
)  # fmt: skip


def answered_by(alias: str, record: Record = RECORD) -> Record:
    return replace(record, calls=[Call(alias, "0:127.0.0.1:1", 0.0)])


def test_opinions_on_courier_and_master_are_held_against_the_gates_own_estimate() -> None:
    record = replace(RECORD, estimate=(0.6, 0.9))

    assert expected_quality(answered_by("courier", record)) == 0.6
    assert expected_quality(answered_by("master", record)) == 0.9


def test_opinions_on_other_models_are_held_against_the_decision() -> None:
    assert expected_quality(answered_by("panel", replace(RECORD, estimate=(0.6, 0.9)))) == 0.7


def test_without_a_gate_the_decision_counts_and_a_named_model_expects_nothing() -> None:
    assert expected_quality(answered_by("courier")) == 0.3
    assert expected_quality(answered_by("elsewhere")) is None
