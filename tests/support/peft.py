"""PEFT directories of LoRA adapters as `save_pretrained` writes them, made with numpy."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"
WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


def write_adapter(
    folder: Path,
    shapes: Mapping[str, tuple[int, int]],
    *,
    rank: int = 8,
    layers: int = 2,
    seed: int = 0,
    modules: tuple[str, ...] = ("q_proj", "v_proj"),
    dtype: Any = np.float32,
    **config: Any,
) -> Path:
    """An adapter of the first layers' `modules`; a seed makes its weights."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors(shapes, rank=rank, layers=layers, seed=seed, modules=modules, dtype=dtype), folder / WEIGHTS)
    plain = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": BASE, "r": rank, "lora_alpha": 16,
        "lora_dropout": 0.0, "bias": "none", "target_modules": list(modules),
        "use_dora": False, "modules_to_save": None,
    }  # fmt: skip
    (folder / CONFIG).write_text(json.dumps({**plain, **config}))
    return folder


def tensors(
    shapes: Mapping[str, tuple[int, int]], *, rank: int, layers: int, seed: int, modules: tuple[str, ...], dtype: Any
) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    found = {}
    for name, (rows, columns) in shapes.items():
        if int(name.split(".")[2]) < layers and name.endswith(modules):
            prefix = f"base_model.model.{name}"
            found[f"{prefix}.lora_A.weight"] = random.normal(0, 0.02, (rank, columns)).astype(dtype)
            found[f"{prefix}.lora_B.weight"] = random.normal(0, 0.02, (rows, rank)).astype(dtype)
    return found
