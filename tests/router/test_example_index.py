"""The index of examples: what is found, and above all what is not."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hivemind.servers.router import example_index
from hivemind.servers.router.example_book import STALE_S, ExampleBook
from hivemind.servers.router.example_index import ExampleIndex, Exemplar, flat_index
from hivemind.servers.router.gate.model import TABLE_FILE
from hivemind.servers.router.gate.wordpiece import PieceTable
from hivemind.servers.router.likeness import Likeness

LIKENESS = Likeness(PieceTable(TABLE_FILE))
MAYOR = "Who is the mayor of Beldale?"
ASKED = "Which person holds the office of mayor in Beldale?"


def index_of(*exemplars: Exemplar) -> ExampleIndex:
    index = ExampleIndex(LIKENESS, flat_index())
    for exemplar in exemplars:
        index.add(exemplar)
    return index


def about(name: str, question: str = MAYOR, answer: str = "It is Ada.", tenant: str = "t1") -> Exemplar:
    return Exemplar(name, tenant, question, answer)


def found(index: ExampleIndex, question: str = ASKED, tenant: str = "t1", count: int = 4) -> list[str]:
    return [hit.exemplar.platinum_id for hit in index.find(tenant, question, count)]


def test_another_wording_of_a_question_finds_it() -> None:
    index = index_of(about("p1"), about("p2", "How do I cook rice?", "In water."))

    (hit,) = index.find("t1", ASKED, 4)

    assert hit.exemplar.platinum_id == "p1"
    assert example_index.THRESHOLD <= hit.similarity < 1
    assert index.find("t1", MAYOR, 1)[0].similarity == pytest.approx(1)


@pytest.mark.parametrize(
    "question",
    [
        "Who is the mayor of Fenmoor?",
        "Which person holds the office of mayor in New York?",
        "How do I cook rice?",
        "",
        "?",
    ],
)
def test_what_is_less_like_it_or_speaks_of_something_else_finds_nothing(question: str) -> None:
    assert found(index_of(about("p1")), question) == []


def test_a_question_with_another_number_finds_nothing() -> None:
    index = index_of(about("p1", "What is 17 + 25?", "42"))

    assert found(index, "What is 17 + 25?") == ["p1"]
    assert found(index, "What is 17 + 26?") == []


def test_another_tenant_finds_nothing_even_with_the_very_same_question() -> None:
    index = index_of(about("p1"), about("p2", tenant="t2"))

    assert found(index, MAYOR, "t2") == ["p2"]
    assert found(index, MAYOR, "t3") == []
    assert found(index, MAYOR, "") == []


def test_a_forgotten_example_is_gone_and_the_others_stay() -> None:
    index = index_of(about("p1"), about("p2", "Tell me the name of the mayor of Beldale."))

    index.forget(["p1", "never-there"])

    assert (found(index), len(index)) == (["p2"], 1)
    index.forget(["p2"])
    assert (found(index), len(index)) == ([], 0)


def test_a_newer_example_of_the_same_question_takes_the_place_of_the_older() -> None:
    index = index_of(about("p1", answer="It is Ada."), about("p2", MAYOR.upper(), answer="It is Boris."))

    (hit,) = index.find("t1", MAYOR.upper(), 4)

    assert (hit.exemplar.platinum_id, len(index)) == ("p2", 1)


def test_the_oldest_go_first_where_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(example_index, "PER_TENANT", 2)
    monkeypatch.setattr(example_index, "IN_ALL", 3)
    index = index_of(*(about(f"a{i}", f"{MAYOR} ({i})") for i in range(3)))
    assert sorted(found(index, MAYOR)) == ["a1", "a2"]

    for i in range(2):
        index.add(about(f"b{i}", f"{MAYOR} ({i})", tenant="t2"))

    assert found(index, MAYOR) == ["a2"]
    assert len(index) == 3


def test_what_is_too_large_to_be_shown_is_not_held() -> None:
    assert len(index_of(about("p1", answer="long " * example_index.LARGEST))) == 0


Step = tuple[str, int, int, int]
STEPS = st.lists(
    st.tuples(st.sampled_from(("add", "forget")), st.integers(0, 2), st.integers(0, 5), st.integers(0, 9)), max_size=40
)


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_after_any_steps_a_tenant_finds_its_own_unforgotten_examples_only(steps: list[Step]) -> None:
    index, held = ExampleIndex(LIKENESS, flat_index()), dict[str, tuple[str, str]]()
    for kind, tenant, question, number in steps:
        name, text = f"p{number}", f"{MAYOR} ({question})"
        if kind == "forget":
            index.forget([name])
            held.pop(name, None)
            continue
        index.add(about(name, text, tenant=f"t{tenant}"))
        held = {n: v for n, v in held.items() if v != (f"t{tenant}", text)} | {name: (f"t{tenant}", text)}

    assert len(index) == len(held)
    for tenant in range(4):
        expected = {n for n, (owner, _) in held.items() if owner == f"t{tenant}"}
        assert set(found(index, MAYOR, f"t{tenant}", 10)) == expected


def test_nothing_is_shown_before_all_was_read_nor_when_nobody_tells_what_is_forgotten() -> None:
    now = [100.0]
    book = ExampleBook(lambda: now[0])
    assert (book.find("t1", MAYOR, 1), book.missing) == ([], "the platinum examples were not read yet")

    book.put(index_of(about("p1")))
    assert len(book.find("t1", MAYOR, 1)) == 1
    now[0] += STALE_S + 1
    assert book.find("t1", MAYOR, 1) == []
    assert "has not told" in book.missing
    book.heard()
    assert len(book.find("t1", MAYOR, 1)) == 1
    book.forget(["p1"])
    assert book.find("t1", MAYOR, 1) == []
    book.drop("gone")
    assert (book.missing, len(book)) == ("gone", 0)
