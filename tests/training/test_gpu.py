"""The GPU back end. Needs CUDA and the extra `gpu`; elsewhere these tests say so."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from hivemind.training.sft_config import DataChoice, Gates, RecipeChoice, SftConfig, write_config
from hivemind.training.sft_text import DONE, train
from hivemind.training.stopping import StopSwitch
from tests.support.invented_facts import write_facts

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch.cuda.is_available() is false"),
    pytest.mark.skipif(importlib.util.find_spec("unsloth") is None, reason="the extra gpu is not installed"),
]


def test_unsloth_teaches_facts_and_leaves_the_same_files_as_the_cpu(training_home: Path, tmp_path: Path) -> None:
    taught, tests = write_facts(tmp_path, 16, seed=5)
    config = SftConfig(
        home=str(training_home), backend="unsloth", gates=Gates(min_gain=0.35),
        data=DataChoice(paths=(str(taught),), heldout_paths=(str(tests),), licence="CC0-1.0"),
        recipe=RecipeChoice(max_steps=40, batch_size=8, learning_rate=5e-4, max_seq_length=512),
    )  # fmt: skip
    write_config(tmp_path / "run", config)
    assert train(tmp_path / "run", StopSwitch()) == DONE
    meta = json.loads((tmp_path / "run" / "adapter" / "adapter_meta.json").read_text())
    assert meta["hyper_parameters"]["backend"] == "unsloth"
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()
