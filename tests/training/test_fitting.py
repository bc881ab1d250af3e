import math
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import TrainerCallback

from hivemind.training.backend import load_trainable
from hivemind.training.base_model import Base
from hivemind.training.encoding import Encoder
from hivemind.training.evaluation import score
from hivemind.training.fitting import COMPLETE, last_checkpoint, make_trainer, planned_steps
from hivemind.training.formatting import read_turns
from hivemind.training.sft_config import CPU_RECIPE, SftConfig
from tests.support.invented_facts import invented_facts, taught


def test_steps_are_as_many_as_the_passes_take_up_to_the_limit() -> None:
    recipe = replace(CPU_RECIPE, epochs=2.0, batch_size=8, max_steps=100)
    assert planned_steps(100, 5_000, recipe) == math.ceil(200 / 8)
    assert planned_steps(10_000, 500_000, recipe) == 100
    assert planned_steps(1, 50, recipe) == 1


def test_packed_rows_count_instead_of_samples() -> None:
    recipe = replace(CPU_RECIPE, epochs=2.0, batch_size=2, max_seq_length=512, packing=True)
    assert planned_steps(100, 512 * 10, recipe) == 10


def test_the_newest_whole_checkpoint_counts_and_torn_ones_are_removed(tmp_path: Path) -> None:
    for step in (9, 10, 11):
        (tmp_path / f"checkpoint-{step}").mkdir()
    for step in (9, 10):
        (tmp_path / f"checkpoint-{step}" / COMPLETE).touch()
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert not (tmp_path / "checkpoint-11").exists()
    assert last_checkpoint(tmp_path / "none") is None


def test_packed_samples_have_the_loss_of_single_ones(tiny_base: Path, tmp_path: Path) -> None:
    loaded = load_trainable("cpu", Base("tiny", tiny_base, ""), CPU_RECIPE, 0)
    encoder = Encoder(loaded.tokenizer)
    samples = [encoder.turns(read_turns(r)) for fact in invented_facts(2, 1) for r in taught(*fact)]
    recipe = replace(CPU_RECIPE, packing=True, batch_size=1, micro_batch=1)
    trainer = make_trainer(
        loaded, samples, SftConfig(home=str(tmp_path)), recipe, backend="cpu", steps=1, folder=tmp_path,
        callback=TrainerCallback(),
    )  # fmt: skip
    batches = list(trainer.get_train_dataloader())
    assert len(batches) == 1
    packed = trainer.compute_loss(loaded.model, batches[0]).item()
    assert packed == pytest.approx(score(loaded.model, samples, loaded.tokenizer.pad_token_id).loss, abs=1e-5)
