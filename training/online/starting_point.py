"""The adapter that a learner starts from, as tensors that fit a model of its own."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from hivemind.training.adapter_files import CONFIG, WEIGHTS
from hivemind.training.sft_config import ConfigError

_PATTERNS: Final = ("rank_pattern", "alpha_pattern")


def rank_of(champion: str, otherwise: int) -> int:
    """The rank of the adapter in a folder; `otherwise` where there is none."""
    return int(_config(champion)["r"]) if champion else otherwise


def starting_weights(champion: str, fresh: Mapping[str, Any]) -> dict[str, Any]:
    """The adapter in a folder as weights by the names of `fresh` (a new adapter, scaled by one); without a folder the
    base model: `fresh`, which adds nothing. What the champion scales by goes into its second matrices.

    ConfigError where it is of a kind that cannot be gone on from.
    """
    import torch
    from safetensors.torch import load_file

    weights = {n: torch.zeros_like(w) if ".lora_B." in n else w.clone() for n, w in fresh.items()}
    if not champion:
        return weights
    config = _config(champion)
    root = math.sqrt(config["r"]) if config.get("use_rslora") else config["r"]
    strength = config["lora_alpha"] / root
    for name, tensor in load_file(Path(champion) / WEIGHTS).items():
        own = name if name in weights else name.replace(".weight", ".default.weight")
        if own not in weights or weights[own].shape != tensor.shape:
            raise ConfigError("champion", f"{champion} has {name}, which no adapter of this learner has")
        weights[own] = tensor.float() * (strength if ".lora_B." in own else 1.0)
    return weights


def _config(champion: str) -> dict[str, Any]:
    try:
        config = json.loads((Path(champion) / CONFIG).read_text(encoding="utf-8"))
        if config.get("use_dora") or any(config.get(p) for p in _PATTERNS):
            raise ConfigError("champion", f"{champion} is of a kind of adapter that the learner cannot go on from")
        return {**config, "r": int(config["r"]), "lora_alpha": float(config["lora_alpha"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError("champion", f"{champion} cannot be read ({type(error).__name__})") from error
