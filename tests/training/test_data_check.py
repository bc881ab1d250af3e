"""The check that a job's configuration gets before the job is queued: `sft_config --check`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hivemind.training.sft_config import DataChoice, SftConfig, write_config

GOOD = [{"instruction": f"What is {n}?", "response": f"It is {n}."} for n in range(3)]


def checked(tmp_path: Path, data: DataChoice) -> tuple[int, str]:
    write_config(tmp_path / "run", SftConfig(home=str(tmp_path), data=data))
    command = [sys.executable, "-m", "hivemind.training.sft_config", "--check", str(tmp_path / "run" / "config.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return done.returncode, done.stderr


def file_of(tmp_path: Path, text: str) -> DataChoice:
    path = tmp_path / "facts.jsonl"
    path.write_text(text)
    return DataChoice(paths=(str(path),))


def test_usable_files_pass(tmp_path: Path) -> None:
    lines = "".join(json.dumps(r) + "\n" for r in GOOD)

    assert checked(tmp_path, file_of(tmp_path, lines)) == (0, "")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "they hold no records"),
        ('{"instruction": "torn\n[broken\n', "2 x is not JSON"),
        ('{"colour": "red"}\n{"colour": "blue"}\n', "2 x "),
        (json.dumps(GOOD[0]) + "\n" + json.dumps(GOOD[0]) + "\n", "usable samples in the files: 1,"),
        (json.dumps({**GOOD[0], "licence": "CC-BY-NC-4.0"}) + "\n", "CC-BY-NC-4.0, which allows no commercial use"),
        ("x" * (5 << 20), "1 x is longer than"),
    ],
    ids=["empty", "broken JSON", "wrong schema", "one sample twice", "licence", "huge line"],
)
def test_files_that_cannot_be_learnt_from_are_refused_with_the_reason(tmp_path: Path, text: str, words: str) -> None:
    code, told = checked(tmp_path, file_of(tmp_path, text))

    assert code == 5
    assert told.startswith("data")
    assert words in told
    assert told.count("\n") == 1


def test_an_empty_ledger_is_no_data(tmp_path: Path) -> None:
    (tmp_path / "datasets").mkdir()
    code, told = checked(tmp_path, DataChoice(platinum=str(tmp_path / "datasets")))

    assert code == 5
    assert "usable samples in the ledger: 0" in told


def test_a_broken_configuration_names_its_field(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    file = tmp_path / "run" / "config.json"
    file.write_text('{"home": "/x", "recipe": {"rank": 7}}')
    command = [sys.executable, "-m", "hivemind.training.sft_config", "--check", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    assert (done.returncode, done.stderr.partition(":")[0]) == (5, "recipe.rank")
