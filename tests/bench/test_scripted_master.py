"""The one scripted part of the demo: it knows the facts of its run and nothing else, and ends like a lost API."""

import json
import random
from pathlib import Path
from typing import Any

import httpx
import pytest

from bench.closed_loop import scripted_master
from bench.facts import DOMAINS, Fact, held_out, invent, taught
from bench.scripted_master import UNKNOWN, answer_to, completion
from hivemind.servers.arbiter.instructions import Quoted, conversation, fenced
from hivemind.servers.arbiter.verdict import parse_comparison, parse_verdict
from hivemind.servers.common.turn import Turn
from hivemind.servers.router.gate.taxonomy import Taxonomy
from hivemind.servers.router.judge import parse_verdict as parse_judgement
from hivemind.servers.router.roles import instructed, prompt

FACTS = invent(random.Random(3), {"towns": 4, "harbour": 3, "library": 3})
BY_SUBJECT = {fact.subject: fact for fact in FACTS}
ONE, OTHER = FACTS[0], FACTS[1]
TAXONOMY = Taxonomy({name: domain.words for name, domain in DOMAINS.items()})


def asked(*messages: dict[str, str], schema: str = "") -> dict[str, Any]:
    body: dict[str, Any] = {"model": "master", "messages": list(messages)}
    return body | ({"response_format": {"json_schema": {"name": schema}}} if schema else {})


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def refining(fact: Fact, draft: str) -> dict[str, Any]:
    quotes = [conversation([Turn("user", taught(fact)[0])]), Quoted("draft", draft)]
    return asked({"role": "system", "content": "rubric"}, user(fenced(quotes, "c0de")), schema="verdict")


def comparing(fact: Fact, a: str, b: str) -> dict[str, Any]:
    quotes = [conversation([Turn("user", taught(fact)[0])]), Quoted("answer A", a), Quoted("answer B", b)]
    return asked({"role": "system", "content": "rubric"}, user(fenced(quotes, "c0de")), schema="comparison")


@pytest.mark.parametrize("fact", FACTS)
def test_any_way_to_ask_is_answered_with_the_same_sentence(fact: Fact) -> None:
    answers = {answer_to(asked(user(q)), BY_SUBJECT) for q in (*taught(fact), *held_out(fact))}

    assert answers == {fact.answer}
    assert fact.value in fact.answer


@pytest.mark.parametrize("fact", FACTS)
def test_the_operators_words_tell_the_domain_of_each_question(fact: Fact) -> None:
    assert {TAXONOMY.classify(q) for q in (*taught(fact), *held_out(fact))} == {fact.domain}


def test_no_held_out_question_is_a_question_of_the_traffic() -> None:
    traffic = {q for fact in FACTS for q in taught(fact)}

    assert not traffic & {q for fact in FACTS for q in held_out(fact)}
    assert not any(q.endswith(way) for q in traffic for fact in FACTS for way in held_out(fact))


def test_facts_of_another_run_are_others() -> None:
    again = invent(random.Random(3), {"towns": 4, "harbour": 3, "library": 3})
    others = invent(random.Random(4), {"towns": 4, "harbour": 3, "library": 3})

    assert again == FACTS
    assert {f.answer for f in others}.isdisjoint(f.answer for f in FACTS)
    assert len({f.subject for f in FACTS}) == len(FACTS)


def test_what_it_does_not_know_it_says() -> None:
    assert answer_to(asked(user("Who is the mayor of Atlantis, a town?")), BY_SUBJECT) == UNKNOWN


def test_a_wrong_draft_is_refined_and_a_right_one_left() -> None:
    wrong = parse_verdict(answer_to(refining(ONE, OTHER.answer), BY_SUBJECT))
    right = parse_verdict(answer_to(refining(ONE, ONE.answer), BY_SUBJECT))

    assert (wrong.answer, wrong.score, wrong.draft_score) == (ONE.answer, 1.0, 0.0)
    assert (right.answer, right.draft_score, right.changes) == (ONE.answer, 1.0, "")


def test_a_draft_on_what_it_does_not_know_is_not_accepted() -> None:
    quotes = [conversation([Turn("user", "Name three colours.")]), Quoted("draft", "Red, green, blue.")]
    body = asked(user(fenced(quotes, "c0de")), schema="verdict")

    assert parse_verdict(answer_to(body, BY_SUBJECT)).score == 0.0


def test_the_answer_with_the_right_value_wins_in_both_orders() -> None:
    assert parse_comparison(answer_to(comparing(ONE, ONE.answer, "I am not sure."), BY_SUBJECT)) == 1
    assert parse_comparison(answer_to(comparing(ONE, "I am not sure.", ONE.answer), BY_SUBJECT)) == -1
    assert parse_comparison(answer_to(comparing(ONE, "Nobody.", "I am not sure."), BY_SUBJECT)) == 0


def test_the_routers_judge_gets_a_winner_and_scores() -> None:
    messages = instructed([user(held_out(ONE)[0])], prompt("judge"), f"A:\n{OTHER.answer}", f"B:\n{ONE.answer}")
    verdict = parse_judgement(answer_to(asked(*messages, schema="judge"), BY_SUBJECT))  # type: ignore[arg-type]

    assert verdict is not None
    assert (verdict.winner, verdict.scores) == (-1, (0.0, 1.0))


def test_it_says_its_tokens() -> None:
    usage = completion(asked(user(taught(ONE)[0])), BY_SUBJECT)["usage"]

    assert usage["prompt_tokens"] > 5
    assert usage["completion_tokens"] > 5
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_it_answers_over_http_until_it_is_stopped_and_can_come_back(tmp_path: Path) -> None:
    with scripted_master(tmp_path, FACTS) as (process, port):
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        told = httpx.post(url, json=asked(user(taught(ONE)[0]))).json()
        process.terminate()
        process.wait(10)
        with pytest.raises(httpx.ConnectError):
            httpx.post(url, json=asked(user(taught(ONE)[0])))
    with scripted_master(tmp_path, FACTS, port):
        again = httpx.post(url, json=asked(user(taught(OTHER)[0]))).json()

    assert told["choices"][0]["message"]["content"] == ONE.answer
    assert again["choices"][0]["message"]["content"] == OTHER.answer
    assert json.loads((tmp_path / "facts.json").read_text())[0]["value"] == ONE.value
