"""LoRA adapters for the real courier, written with numpy: each pushes every answer towards one word."""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from hivemind.servers.common.courier import wheel_file

Matrix = NDArray[np.float32]
LAST_DOWN = "base_model.model.model.layers.29.mlp.down_proj"
RANK = 8


@functools.cache
def _vocabulary() -> tuple[dict[str, int], Matrix, Matrix]:
    """Words to their numbers, the embedding (tied to the output), the weights of the last norm."""
    reader = gguf.GGUFReader(wheel_file())
    tensors = {t.name: t for t in reader.tensors}
    words = reader.fields["tokenizer.ggml.tokens"]
    numbers = {bytes(words.parts[part]).decode(): i for i, part in enumerate(words.data)}
    embedding = gguf.quants.dequantize(tensors["token_embd.weight"].data, tensors["token_embd.weight"].tensor_type)
    return numbers, embedding.astype(np.float32), np.asarray(tensors["output_norm.weight"].data, np.float32)


def word_matrices(word: str, *, strength: float = 50.0) -> dict[str, Matrix]:
    """A rank-8 change of the last block's down_proj: whatever its input, the output points more at `word`.

    The output is compared with the embedding after the last norm; so the direction is the word's embedding, less the
    mean of all, times the norm's weights. Most inputs have a sum that is not 0, which is all that A takes of them.
    """
    numbers, embedding, norm = _vocabulary()
    direction = (embedding[numbers["Ġ" + word]] - embedding.mean(0)) * norm
    direction *= strength / np.linalg.norm(direction) / RANK
    inputs = 1536
    return {
        f"{LAST_DOWN}.lora_A.weight": np.full((RANK, inputs), inputs**-0.5, np.float32),
        f"{LAST_DOWN}.lora_B.weight": np.repeat(direction[:, None], RANK, axis=1).astype(np.float32),
    }


def write_adapter(
    folder: Path, matrices: Mapping[str, Matrix], *, rank: int = RANK, alpha: float = RANK, **config: Any
) -> Path:
    """A PEFT directory with these weights."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(matrices), folder / "adapter_model.safetensors")
    modules = sorted({name.rpartition(".lora_")[0].rpartition(".")[2] for name in matrices})
    about = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "target_modules": modules, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(about | config))
    return folder


def write_word_adapter(adapters: Path, adapter_id: str, word: str) -> Path:
    """The adapter `<role>-v000001` under the adapters' folder, which says `word` again and again."""
    role, _, version = adapter_id.rpartition("-")
    return write_adapter(adapters / role / version, word_matrices(word))
