"""Whole runs of sft_text on a tiny model, each in a process of its own unless it is only looked at."""

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hivemind.training.base_model import load_model, prepare_base
from hivemind.training.merging import merge
from hivemind.training.run_log import HEARTBEAT_FILE, LOG_FILE, heartbeat, read_events
from hivemind.training.sft_config import (
    ConfigError,
    DataChoice,
    Gates,
    RecipeChoice,
    SftConfig,
    read_config,
    write_config,
)
from hivemind.training.sft_text import DONE, FAILED, REJECTED, STOPPED, UNUSABLE, main, train
from hivemind.training.stopping import StopSwitch
from tests.support.invented_facts import write_facts
from tests.support.waiting import until

OPEN = Gates(min_gain=-1, max_questions=10, max_text=10)
"""A random model can learn next to nothing; what is tested is the run."""


@pytest.fixture(autouse=True)
def _signals_as_before() -> Iterator[None]:
    """`main` listens to signals; the tests' own handlers come back."""
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def config(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> SftConfig:
    home = tmp_path_factory.mktemp("home")
    taught, _ = write_facts(home, 4, seed=1)
    return SftConfig(
        home=str(home), base_weights=str(tiny_base), threads=1, niceness=0, checkpoint_steps=2, backend="cpu",
        data=DataChoice(paths=(str(taught),), licence="CC0-1.0", replay=0.2), gates=OPEN,
        recipe=RecipeChoice(max_steps=6, batch_size=4, learning_rate=5e-3),
    )  # fmt: skip


def start(run: Path, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "hivemind.training.sft_text", "--run", str(run)]
    return subprocess.Popen(command, text=True, stderr=subprocess.PIPE, **options)


def run_in_process(run: Path, config: SftConfig) -> int:
    write_config(run, config)
    return train(run, StopSwitch())


def events(run: Path, name: str) -> list[dict[str, Any]]:
    return [e for e in read_events(run / LOG_FILE) if e["event"] == name]


def losses(run: Path) -> dict[int, float]:
    return {e["step"]: e["loss"] for e in events(run, "step")}


@pytest.fixture(scope="module")
def unbroken(config: SftConfig) -> Path:
    run = Path(config.home) / "runs" / "unbroken"
    assert run_in_process(run, config) == DONE
    return run


def test_a_run_leaves_an_adapter_with_its_papers_and_none_of_the_texts(unbroken: Path) -> None:
    meta = json.loads((unbroken / "adapter" / "adapter_meta.json").read_text())
    peft = json.loads((unbroken / "adapter" / "adapter_config.json").read_text())
    assert (meta["base_model"], meta["role"], meta["data_licence"]) == ("courier", "implementer", "CC0-1.0")
    assert peft["base_model_name_or_path"] == "courier"
    assert meta["evaluation"]["candidate_heldout_loss"] == events(unbroken, "evaluated")[0]["candidate_heldout_loss"]
    assert sorted(losses(unbroken)) == [1, 2, 3, 4, 5, 6]
    assert (unbroken / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert "| loss, held-out answers |" in (unbroken / "evaluation.md").read_text()
    assert {p.name for p in unbroken.iterdir()} == {
        "adapter", "config.json", "data_card.json", "evaluation.json", "evaluation.md", "heartbeat", "log.jsonl",
        "loss.png",
    }  # fmt: skip


def test_two_runs_with_one_seed_give_the_same_bytes(unbroken: Path, config: SftConfig, tmp_path: Path) -> None:
    again = tmp_path / "runs" / "again"
    write_config(again, config)
    process = start(again)
    assert process.wait(120) == DONE, process.communicate()[1]
    for name in ("adapter_model.safetensors", "adapter_config.json", "adapter_meta.json"):
        assert (again / "adapter" / name).read_bytes() == (unbroken / "adapter" / name).read_bytes()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, STOPPED), (signal.SIGKILL, -signal.SIGKILL)])
def test_a_run_that_was_ended_goes_on_as_if_it_had_not_been(
    number: int, code: int, unbroken: Path, config: SftConfig, tmp_path: Path
) -> None:
    run = tmp_path / "runs" / "broken"
    write_config(run, config)
    process = start(run)
    until(lambda: events(run, "checkpoint") or process.poll() is not None, within_s=120)
    process.send_signal(number)
    assert process.wait(30) == code, process.communicate()[1]
    assert not (run / "adapter").exists()

    assert train(run, StopSwitch()) == DONE
    assert losses(run) == pytest.approx(losses(unbroken), abs=1e-6)
    name = "adapter_model.safetensors"
    assert (run / "adapter" / name).read_bytes() == (unbroken / "adapter" / name).read_bytes()


def test_a_checkpoint_that_a_kill_left_half_written_is_not_gone_on_from(config: SftConfig, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "a"
    torn = run / "checkpoints" / "checkpoint-4"
    torn.mkdir(parents=True)
    (torn / "adapter_model.safetensors").write_bytes(b"torn")
    assert run_in_process(run, config) == DONE
    assert min(losses(run)) == 1


def test_a_loss_that_is_no_number_ends_the_run_without_an_adapter(
    config: SftConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    broken.mkdir()
    for file in Path(config.base_weights).iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][:] = float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    run = tmp_path / "runs" / "nan"
    assert run_in_process(run, replace(config, base_weights=str(broken))) == FAILED
    assert "the loss became nan at step 1" in events(run, "failed")[0]["reason"]
    assert "the loss became nan at step 1" in capsys.readouterr().err
    assert not (run / "adapter").exists()


def test_a_result_that_does_not_pass_the_gates_is_rejected_with_the_figures(config: SftConfig, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "weak"
    assert run_in_process(run, replace(config, gates=replace(OPEN, min_gain=0.99))) == REJECTED
    assert "held-out gain over the base is" in events(run, "rejected")[0]["reason"]
    assert not (run / "adapter").exists()
    assert json.loads((run / "evaluation.json").read_text())["passed"] is False


def test_a_champion_is_measured_too_and_a_worse_candidate_is_rejected(
    unbroken: Path, config: SftConfig, tmp_path: Path
) -> None:
    run = tmp_path / "runs" / "second"
    idle = replace(config.recipe, max_steps=1, learning_rate=1e-9)
    changes = replace(config, champion=str(unbroken / "adapter"), recipe=idle)
    assert run_in_process(run, changes) == REJECTED
    scores = json.loads((run / "evaluation.json").read_text())["scores"]
    assert scores["champion"]["heldout"]["loss"] < scores["candidate"]["heldout"]["loss"]
    assert "held-out loss over the champion" in events(run, "rejected")[0]["reason"]


def test_a_disk_that_is_full_fails_the_run_and_shows_no_half_adapter(config: SftConfig, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "full"
    write_config(run, config)

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    process = start(run, preexec_fn=small_files)
    assert process.wait(120) == FAILED, process.communicate()[1]
    assert "too large" in events(run, "failed")[0]["reason"]
    assert not list(run.glob("*adapter*"))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda c: replace(c, recipe=RecipeChoice(rank=7)), "recipe.rank"),
        (lambda c: replace(c, base="gpt-17", base_weights=""), "base: gpt-17 is unknown here"),
        (lambda c: replace(c, backend="unsloth"), "unsloth cannot run here"),
        (lambda c: replace(c, data=replace(c.data, licence="CC-BY-NC-4.0")), "allows no commercial use"),
        (lambda c: replace(c, data=DataChoice(paths=(c.home + "/empty.jsonl",))), "too few usable samples"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_sentence(
    change: Callable[[SftConfig], SftConfig], sentence: str, config: SftConfig, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (Path(config.home) / "empty.jsonl").touch()
    run = tmp_path / "runs" / "bad"
    assert run_in_process(run, change(config)) == UNUSABLE
    told = capsys.readouterr().err.strip()
    assert sentence in told
    assert "\n" not in told
    assert events(run, "failed")[0]["reason"] == told


def test_a_merged_adapter_answers_as_base_and_adapter_together(
    unbroken: Path, config: SftConfig, tmp_path: Path
) -> None:
    import torch
    from peft import PeftModel

    base = prepare_base(config, {})
    merge(unbroken / "adapter", base, tmp_path / "merged")
    ids = torch.tensor([[5, 17, 300, 4000]])
    with torch.inference_mode():
        apart = PeftModel.from_pretrained(load_model(base.folder), unbroken / "adapter")(ids).logits
        merged = load_model(tmp_path / "merged")(ids).logits
        alone = load_model(base.folder)(ids).logits
    torch.testing.assert_close(merged, apart)
    assert not torch.allclose(merged, alone)


def test_an_adapter_is_not_merged_into_other_weights(unbroken: Path, config: SftConfig, tmp_path: Path) -> None:
    other = replace(prepare_base(config, {}), revision="sha256:other")
    with pytest.raises(ConfigError, match="was made for"):
        merge(unbroken / "adapter", other, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_candidate_that_forgets_too_much_is_served_at_the_largest_scale_that_passes(
    config: SftConfig, tmp_path: Path
) -> None:
    wild = replace(config, recipe=replace(config.recipe, learning_rate=1e-2, max_steps=12), data=replace(
        config.data, replay=0.0))  # fmt: skip
    loud, soft = tmp_path / "runs" / "loud", tmp_path / "runs" / "soft"
    assert run_in_process(loud, wild) == DONE
    scores = json.loads((loud / "evaluation.json").read_text())["scores"]
    rise = scores["candidate"]["text"]["loss"] / scores["base"]["text"]["loss"] - 1
    assert run_in_process(soft, replace(wild, gates=replace(OPEN, max_text=rise * 0.6))) == DONE
    found = json.loads((soft / "evaluation.json").read_text())
    alpha = json.loads((soft / "adapter" / "adapter_config.json").read_text())["lora_alpha"]
    assert found["scale"] < 1
    assert alpha == 16 * found["scale"]
    assert found["scores"]["candidate"]["text"]["loss"] / found["scores"]["base"]["text"]["loss"] - 1 <= rise * 0.6


def test_flags_make_a_configuration_and_other_flags_do_not_change_it(
    config: SftConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HIVEMIND_HOME", str(tmp_path))
    run = tmp_path / "runs" / "flags"
    asked = ["--run", str(run), "--data", *config.data.paths, "--backend", "unsloth"]
    assert main(asked) == UNUSABLE
    assert "unsloth cannot run here" in capsys.readouterr().err
    assert read_config(run).data.paths == config.data.paths
    assert main([*asked, "--seed", "8"]) == UNUSABLE
    assert "was started with other options" in capsys.readouterr().err


def test_a_run_without_a_configuration_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--run", str(tmp_path / "typo")]) == UNUSABLE
    assert "cannot be read" in capsys.readouterr().err


def test_the_heartbeat_beats_while_nothing_else_happens(tmp_path: Path) -> None:
    path = tmp_path / HEARTBEAT_FILE
    with heartbeat(tmp_path):
        until(path.exists)
        os.utime(path, (0, 0))
        until(lambda: path.stat().st_mtime > 0, within_s=20)
