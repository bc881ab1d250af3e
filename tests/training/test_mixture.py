import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from hivemind.training.formatting import Turn
from hivemind.training.hub_data import stream_hub
from hivemind.training.licences import Use, reviewed, use_of
from hivemind.training.mixture import BadData, Mixture, load_mixture, samples_from_lines, samples_to_lines
from hivemind.training.sft_config import DataChoice, HubSource
from tests.training.test_platinum_data import example

LICENCES = Path(__file__).resolve().parents[2] / "datasets" / "LICENSES.md"


def count(turns: Sequence[Turn]) -> int:
    return sum(len(t.content.split()) for t in turns)


def load(choice: DataChoice, *, seed: int = 0, max_tokens: int = 50) -> Mixture:
    return load_mixture(choice, seed=seed, count_tokens=count, max_tokens=max_tokens)


@pytest.fixture
def choice(tmp_path: Path) -> DataChoice:
    rows = [{"input": f"What is word {i}?", "output": f"Word {i} is w{i}."} for i in range(40)]
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return DataChoice(paths=(str(path),), licence="MIT")


def test_the_same_seed_gives_the_same_mixture_and_another_one_another_order(choice: DataChoice) -> None:
    assert load(choice) == load(choice)
    assert load(choice).train != load(choice, seed=1).train


def test_training_and_held_out_samples_share_nothing(choice: DataChoice) -> None:
    mixture = load(choice)
    assert (len(mixture.train), len(mixture.heldout)) == (36, 4)
    assert not {s.turns for s in mixture.train} & {s.turns for s in mixture.heldout}


def test_what_is_held_out_by_name_is_not_trained_on_even_if_the_data_holds_it_too(
    choice: DataChoice, tmp_path: Path
) -> None:
    tests = tmp_path / "tests.jsonl"
    tests.write_text(json.dumps({"input": "What is word 7?", "output": "Word 7 is w7."}) + "\n")
    mixture = load(replace(choice, heldout_paths=(str(tests),)))
    assert (len(mixture.train), len(mixture.heldout)) == (39, 1)


def test_the_card_tells_of_each_source_what_was_used_and_why_the_rest_was_not(
    choice: DataChoice, tmp_path: Path
) -> None:
    more = tmp_path / "more.jsonl"
    rows = [
        {"input": "What is word 1?", "output": "Word 1 is w1."},
        {"text": "x"},
        {"input": "a b " * 40, "output": "c"},
    ]
    more.write_text("".join(json.dumps(r) + "\n" for r in rows) + "{broken\n")
    card = load(replace(choice, paths=(*choice.paths, str(more)))).card
    second = card["sources"][1]
    assert (second["records"], second["used"], second["exact_duplicates"]) == (3, 0, 1)
    assert second["refused"] == {"is not JSON": 1, "fits no known schema": 1, "is longer than 50 tokens": 1}
    assert card["licences"] == ["MIT"]
    assert card["train"]["samples"] == 36
    assert json.loads(json.dumps(card)) == card


def test_a_limit_holds_over_all_sources(choice: DataChoice) -> None:
    mixture = load(replace(choice, limit=10))
    assert len(mixture.train) + len(mixture.heldout) == 10


@pytest.mark.parametrize("text", ["", "{}\n", "{broken\n", json.dumps({"input": "q", "output": "a"}) + "\n"])
def test_data_that_leaves_too_little_is_refused_with_the_reasons(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    with pytest.raises(BadData, match="too few usable samples"):
        load(DataChoice(paths=(str(path),)))


def test_a_source_that_forbids_commercial_use_is_refused_unless_it_is_allowed(choice: DataChoice) -> None:
    forbidden = replace(choice, licence="CC-BY-NC-4.0")
    with pytest.raises(BadData, match=r"data\.jsonl is under CC-BY-NC-4\.0"):
        load(forbidden)
    assert load(replace(forbidden, allow_non_commercial=True)).licence == "CC-BY-NC-4.0"


def test_a_record_that_says_so_itself_makes_its_source_non_commercial(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({"input": "q", "output": "a", "license": "cc-by-nc-sa-4.0"}) + "\n")
    with pytest.raises(BadData, match=r"cc-by-nc-sa-4\.0"):
        load(DataChoice(paths=(str(path),), licence="MIT"))


def test_an_unknown_licence_is_warned_of_and_written_down(choice: DataChoice) -> None:
    card = load(replace(choice, licence="")).card
    assert card["licences"] == ["LicenseRef-unstated"]
    assert "not known to allow commercial use" in card["warnings"][0]


def test_platinum_examples_are_named_in_the_card(tmp_path: Path) -> None:
    (tmp_path / "training_metadata.jsonl").write_bytes(b"".join(example(i) for i in range(5, 9)))
    mixture = load(DataChoice(platinum=str(tmp_path)))
    assert (mixture.first_sequence, mixture.last_sequence) == (5, 8)
    assert mixture.card["platinum"]["ids"] == ["id-5", "id-6", "id-7", "id-8"]


def test_without_a_hub_the_refusal_names_the_way_by_local_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(BadData, match=r"Open-Orca/SlimOrca cannot be read from the hub .*--data"):
        load(DataChoice(mixture="default", limit=10))


def test_a_data_set_is_streamed_in_an_order_that_the_seed_fixes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "open" / "words"
    folder.mkdir(parents=True)
    rows = [{"input": f"What is {i}?", "output": f"{i}."} for i in range(30)]
    (folder / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    monkeypatch.chdir(tmp_path)  # `datasets` takes a folder of that name before it asks the hub

    def streamed(seed: int) -> list[str]:
        return [r["input"] for r in stream_hub(HubSource("open/words"), "main", seed)]

    assert sorted(streamed(1)) == sorted(r["input"] for r in rows)
    assert streamed(1) == streamed(1)
    assert streamed(1) != streamed(2)


def test_samples_are_read_back_from_their_lines(choice: DataChoice) -> None:
    mixture = load(choice)
    assert tuple(samples_from_lines(samples_to_lines(mixture.train))) == mixture.train


@pytest.mark.parametrize(
    ("licence", "use"),
    [
        ("MIT", "commercial"),
        ("MIT AND CC-BY-4.0", "commercial"),
        ("MIT AND LicenseRef-model-output", "unknown"),
        ("", "unknown"),
        ("CC-BY-NC-4.0", "non-commercial"),
        ("MIT AND CC-BY-NC-SA-4.0", "non-commercial"),
        ("research non-commercial", "non-commercial"),
        ("once", "unknown"),
    ],
)
def test_a_licence_allows_only_what_all_its_parts_allow(licence: str, use: Use) -> None:
    assert use_of(licence) == use


def test_every_reviewed_source_stands_in_the_review_with_its_licence() -> None:
    review = LICENCES.read_text()
    for name, source in reviewed().items():
        assert f"| {name} | {source.licence} | {source.use} |" in review
