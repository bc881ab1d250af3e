from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hivemind.servers.common.courier import WHEEL_SHA256
from hivemind.training.base_model import Base, load_model, prepare_base
from hivemind.training.encoding import Encoder, replay
from hivemind.training.formatting import Turn
from hivemind.training.sft_config import ConfigError, SftConfig


def test_the_couriers_tokenizer_ends_turns_and_pads_as_its_file_says(courier: Base, tokenizer: Any) -> None:
    assert courier.revision == f"sha256:{WHEEL_SHA256}"
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|im_end|>")
    assert tokenizer.clean_up_tokenization_spaces is False


def test_the_converted_weights_say_nothing_of_their_quantization(courier: Base) -> None:
    model = load_model(courier.folder)
    assert {str(p.dtype) for p in model.parameters()} == {"torch.float32"}
    assert not hasattr(model.config, "quantization_config")
    assert model.config.eos_token_id == 2


def test_a_conversion_that_is_there_is_taken_as_it_is(courier: Base, training_home: Path) -> None:
    before = (courier.folder / "model.safetensors").stat().st_mtime_ns
    assert prepare_base(SftConfig(home=str(training_home)), {}) == courier
    assert (courier.folder / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("weights", "problem"),
    [
        ("/nowhere/model.gguf", "is not there"),
        ("http://127.0.0.1:1/v1", "is a server"),
        (__file__, "is not a GGUF file"),
    ],
)
def test_weights_that_cannot_be_trained_are_refused_with_the_cure(tmp_path: Path, weights: str, problem: str) -> None:
    config = SftConfig(home=str(tmp_path))
    with pytest.raises(ConfigError, match=problem):
        prepare_base(config, {"HIVEMIND_COURIER": weights})
    with pytest.raises(ConfigError, match=problem):
        prepare_base(replace(config, base_weights=weights), {})


def test_only_the_tokens_of_answers_are_learnt(encoder: Encoder) -> None:
    turns = (Turn("system", "Be brief."), Turn("user", "Who?"), Turn("assistant", "Ada."), Turn("user", "Why?"),
             Turn("assistant", "Because."))  # fmt: skip
    encoded = encoder.turns(turns)
    learnt = [i for i, m in zip(encoded.ids, encoded.mask, strict=True) if m]
    assert encoder.tokenizer.decode(learnt) == "Ada.<|im_end|>Because.<|im_end|>"


def test_replay_makes_up_its_share_and_repeats_nothing(encoder: Encoder) -> None:
    import random

    found = replay(encoder, 48, 0.25, random.Random(0))
    assert len(found) == 16
    assert len(set(found)) == 16
    assert len(replay(encoder, 10_000, 0.5, random.Random(0))) == 76
