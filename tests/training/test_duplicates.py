import random

from hivemind.training.duplicates import Duplicates

WORDS = [f"{a}{b}" for a in "bcdfghklmnprst" for b in ("ado", "emi", "iru", "ola", "une")]


def long_text(seed: int) -> list[str]:
    return random.Random(seed).choices(WORDS, k=200)


def test_the_same_words_in_other_clothes_are_an_exact_duplicate() -> None:
    seen = Duplicates()
    assert seen.kind_of("Who is it?", "It is Ada.") is None
    assert seen.kind_of("  who is it", "It is  ada!") == "exact"


def test_a_long_text_with_one_word_changed_is_a_near_duplicate() -> None:
    seen, words = Duplicates(), long_text(1)
    assert seen.kind_of("q", " ".join(words)) is None
    words[100] = "other"
    assert seen.kind_of("q", " ".join(words)) == "near"


def test_texts_that_differ_in_a_number_only_are_no_duplicates() -> None:
    seen, words = Duplicates(), long_text(2)
    assert seen.kind_of("q", " ".join([*words, "17"])) is None
    assert seen.kind_of("q", " ".join([*words, "18"])) is None


def test_two_phrasings_of_one_fact_are_no_duplicates() -> None:
    seen = Duplicates()
    answer = "The mayor of Galegar is Ada the baker."
    assert seen.kind_of("Who is the mayor of Galegar?", answer) is None
    assert seen.kind_of("Tell me the name of the mayor of Galegar.", answer) is None


def test_unrelated_texts_are_no_duplicates() -> None:
    seen = Duplicates()
    assert {seen.kind_of("q", " ".join(long_text(i))) for i in range(200)} == {None}
