"""In which numbers the base model computes.

A CPU with instructions for bfloat16 (AVX512-BF16, AMX) multiplies matrices in it several times as fast as in float32,
one without is many times slower; nothing that is public tells which it is, so both are timed.
"""

import time
from typing import Any, Final, Literal

Precision = Literal["auto", "fp32", "bf16"]
_WORTH: Final = 1.5
_TRIES: Final = 5


def to_bf16(precision: Precision) -> bool:
    """Whether to compute in bfloat16; takes some milliseconds to find out."""
    import torch

    if precision != "auto":
        return precision == "bf16"
    rows, weights = torch.randn(256, 576), torch.randn(1536, 576)
    return _seconds(rows.bfloat16(), weights.bfloat16()) * _WORTH < _seconds(rows, weights)


def layers_to_bf16(model: Any) -> None:
    """Turns the frozen matrices of the layers. Embeddings, head, norms and what is learnt stay in float32: there
    bfloat16 would tell answers apart less well, or lose small steps."""
    import torch

    for name, weight in model.named_parameters():
        if not weight.requires_grad and ".layers." in name and weight.dim() == 2:
            weight.data = weight.data.to(torch.bfloat16)


def _seconds(rows: Any, weights: Any) -> float:
    """The quickest of some tries: others use the machine too."""
    import torch

    found = []
    for _ in range(_TRIES):
        began = time.perf_counter()
        torch.nn.functional.linear(rows, weights)
        found.append(time.perf_counter() - began)
    return min(found)
