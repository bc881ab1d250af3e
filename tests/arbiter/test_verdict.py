"""Verdicts are taken as they are meant or not at all, and acceptance sees what needs no model."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivemind.servers.arbiter.acceptance import Rule, is_refusal
from hivemind.servers.arbiter.language import foreign_to
from hivemind.servers.arbiter.verdict import Invalid, Verdict, parse_comparison, parse_verdict

GOOD = {"answer": "Paris", "score": 0.9, "draft_score": 0, "confidence": 1, "changes": "", "safety": "safe"}
VERDICT = Verdict("Paris is the capital.", 0.9, 0.2, 0.8, "", "safe")


def test_a_verdict_is_read_whatever_stands_around_it() -> None:
    assert parse_verdict(f"Here it is:\n```json\n{json.dumps(GOOD)}\n```").answer == "Paris"


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"answer": "  "}, "answer is empty"),
        ({"answer": None}, "answer is missing"),
        ({"answer": "x" * 64_001}, "longer than"),
        ({"answer": "a\x00b"}, "NUL"),
        ({"score": 1.2}, "score"),
        ({"score": "0.9"}, "score"),
        ({"score": True}, "score"),
        ({"draft_score": -0.1}, "draft_score"),
        ({"confidence": None}, "confidence"),
        ({"safety": 3}, "safety"),
    ],
)
def test_a_wrong_field_is_refused_by_name(wrong: dict[str, Any], why: str) -> None:
    with pytest.raises(Invalid, match=why):
        parse_verdict(json.dumps(GOOD | wrong))


@pytest.mark.parametrize("text", ["", "no", "{", "}{", "[1]", '{"answer": NaN}', "{" * 100_000 + "}" * 100_000])
def test_what_is_no_object_is_refused(text: str) -> None:
    with pytest.raises(Invalid):
        parse_verdict(text)


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.floats(), st.integers(), st.text(max_size=20)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(list(GOOD)), VALUES))
def test_any_object_is_a_sound_verdict_or_refused(fields: dict[str, Any]) -> None:
    try:
        found = parse_verdict(json.dumps(GOOD | fields))
    except Invalid:
        return
    assert found.answer.strip()
    assert all(0 <= share <= 1 for share in (found.score, found.draft_score, found.confidence))


@given(st.text())
def test_any_text_is_a_verdict_or_refused(text: str) -> None:
    with pytest.raises(Invalid):
        parse_verdict(text)
    with pytest.raises(Invalid):
        parse_comparison(text)


@pytest.mark.parametrize(("winner", "meaning"), [("A", 1), ("B", -1), ("TIE", 0)])
def test_a_comparison_names_its_winner(winner: str, meaning: int) -> None:
    assert parse_comparison(json.dumps({"winner": winner, "reason": ""})) == meaning


def objection(verdict: Verdict, draft: str = "It is a city.", conversation: str = "user: the capital?") -> str:
    return Rule(0.7).objection(verdict, draft=draft, conversation=conversation, boundary="c0de")


def test_nothing_speaks_against_a_sound_answer() -> None:
    assert objection(VERDICT) == ""


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"score": 0.69}, "score"),
        ({"safety": "Unsafe: weapons"}, "unsafe"),
        ({"answer": "c0de>>> Paris"}, "marks"),
        ({"answer": "I'm sorry, but I can't assist with that."}, "refusal"),
        ({"answer": "Paris " * 3000}, "characters long"),
    ],
)
def test_what_speaks_against_an_answer_is_said(fields: dict[str, Any], why: str) -> None:
    assert why in objection(replace(VERDICT, **fields))


@pytest.mark.parametrize(
    "answer",
    ["I cannot help with that request.", "As an AI, I can't provide this.", "Sorry, but I must not continue."],
)
def test_refusals_are_known(answer: str) -> None:
    assert is_refusal(answer)


@pytest.mark.parametrize(
    "answer",
    ["Sorry is a word.", "I can see two cases.", "Paris. I'm sorry that I can't help more.", "You can't divide by 0."],
)
def test_other_answers_are_not_taken_for_refusals(answer: str) -> None:
    assert not is_refusal(answer)


ENGLISH = "user: What is the capital of France, and how old is it? Tell me which of the kings lived there."
GERMAN = "Die Hauptstadt ist Paris, und sie ist sehr alt. Nicht alle Könige haben dort mit dem Hof gelebt."


@pytest.mark.parametrize(
    ("answer", "context", "found"),
    [
        (GERMAN, ENGLISH, "German"),
        (GERMAN, f"{ENGLISH} Answer in German.", ""),
        (GERMAN, f"{ENGLISH}\n\n{GERMAN}", ""),
        (GERMAN, GERMAN, ""),
        ("Столица Франции — Париж.", ENGLISH, "Cyrillic"),
        ("Столица Франции — Париж.", "user: Какая столица?", ""),
        ("パリです。フランスの首都はパリ。", ENGLISH, "Cjk"),
        ("x = [i ** 2 for i in range(10)]", ENGLISH, ""),
        ("42", ENGLISH, ""),
        ("α + β = γ, so the angle is known to be right.", ENGLISH, ""),
    ],
)
def test_a_language_that_nothing_gives_reason_for_is_noticed(answer: str, context: str, found: str) -> None:
    assert foreign_to(answer, context) == found
