"""The bootstrap on the courier's real weights, as an operator starts it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hivemind.training.base_model import Base
from hivemind.training.run_log import read_events
from hivemind.training.sft_text import DONE, STOPPED, UNUSABLE
from tests.support.invented_facts import write_facts
from tests.support.waiting import until


@pytest.fixture
def home(training_home: Path, courier: Base, tmp_path: Path) -> Path:
    """A fresh state folder; only the converted weights are there already."""
    found = tmp_path / "home"
    found.mkdir()
    (found / "cache").symlink_to(training_home / "cache")
    return found


def start(home: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "hivemind.training.bootstrap", *options]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HIVEMIND_")} | {"HIVEMIND_HOME": str(home)}
    return subprocess.Popen(command, env={**environment, "COLUMNS": "400"}, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    told = process.communicate(timeout=1200)[1]
    return process.returncode, told


@pytest.mark.timeout(1800)
def test_facts_are_learnt_within_100_cpu_seconds_without_forgetting_and_over_a_stop(home: Path, tmp_path: Path) -> None:
    taught, tests = write_facts(tmp_path, 16, seed=3)
    options = ["--data", str(taught), "--heldout", str(tests), "--licence", "CC0-1.0", "--max-steps", "15", "--cpu",
               "--threads", "1"]  # fmt: skip
    target = home / "adapters" / "foundational" / "champion_v1"
    log = home / "runs" / "bootstrap" / "log.jsonl"

    first = start(home, *options)
    until(lambda: any(e["event"] == "step" for e in read_events(log)) or first.poll() is not None, within_s=600)
    first.send_signal(signal.SIGINT)
    code, told = ended(first)
    assert (code, target.exists()) == (STOPPED, False), told
    assert "goes on from the last checkpoint" in told

    code, told = ended(start(home, *options))
    assert code == DONE, told
    assert "no mesh runs" in told
    found = json.loads((target / "evaluation.json").read_text())["scores"]
    change = {p: found["candidate"][p]["loss"] / found["base"][p]["loss"] - 1 for p in found["base"]}
    assert change["heldout"] <= -0.35
    assert change["questions"] <= 0.02
    assert change["text"] <= 0.02
    names = {p.name for p in target.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "adapter_meta.json", "tokenizer.json"} <= names
    assert {"evaluation.md", "loss.png", "data_card.json"} <= names
    assert [p.name for p in target.parent.iterdir()] == ["champion_v1"]

    code, told = ended(start(home, *options))
    assert code == UNUSABLE
    assert "is there already; --force replaces it" in told


@pytest.mark.timeout(600)
def test_a_dry_run_tells_the_plan_and_writes_nothing(home: Path, tmp_path: Path) -> None:
    taught, _ = write_facts(tmp_path, 16, seed=3)
    code, told = ended(start(home, "--dry-run", "--data", str(taught), "--cpu"))
    assert code == DONE
    assert "57 to train on, 5 held out" in told
    assert "CPU-minutes" in told
    assert [p.name for p in home.iterdir()] == ["cache"]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--rank", "7"], "recipe.rank: input should be a multiple of 8, not 7"),
        (["--learning-rate", "-1"], "recipe.learning_rate: input should be greater than 0, not -1.0"),
        (["--backend", "unsloth", "--dry-run"], "unsloth cannot run here"),
    ],
)
def test_a_bad_recipe_is_refused_before_anything_is_read(
    options: list[str], sentence: str, home: Path, tmp_path: Path
) -> None:
    taught, _ = write_facts(tmp_path, 2, seed=3)
    code, told = ended(start(home, "--data", str(taught), *options))
    assert code == UNUSABLE
    assert sentence in " ".join(told.split())
