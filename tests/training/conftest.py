"""Base models for the tests of training: the courier's real weights, converted once, and a tiny random model."""

import os
from pathlib import Path
from typing import Any

import pytest

from hivemind.training.base_model import Base, load_tokenizer, prepare_base
from hivemind.training.encoding import Encoder
from hivemind.training.sft_config import SftConfig

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def training_home() -> Path:
    """A state folder whose cache outlives the tests: converting the courier takes half a minute."""
    return ROOT / ".cache" / "training-tests"


@pytest.fixture(scope="session")
def courier(training_home: Path) -> Base:
    """The courier's weights as transformers wants them."""
    os.environ["TQDM_DISABLE"] = "1"
    return prepare_base(SftConfig(home=str(training_home)), {})


@pytest.fixture(scope="session")
def tokenizer(courier: Base) -> Any:
    return load_tokenizer(courier.folder)


@pytest.fixture(scope="session")
def encoder(tokenizer: Any) -> Encoder:
    return Encoder(tokenizer)


@pytest.fixture(scope="session")
def tiny_base(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two small layers with random weights and the courier's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
            bos_token_id=1, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        )
    )  # fmt: skip
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
