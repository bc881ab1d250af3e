"""Turns a PEFT adapter into the file that llama.cpp loads.

The PEFT directory stays the truth; the GGUF file lies in a cache under a name that follows from what it was made of,
is written aside and renamed, and may be deleted at any time.

A LoRA changes a layer W into W + (alpha / r) B A (Hu et al. 2021, https://arxiv.org/abs/2106.09685). llama.cpp keeps
the rows of the query and key projections in another order than transformers does (pairs of rope next to each other), so
the rows of their B move with them.
"""

import hashlib
import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import orjson

from hivemind.servers.engine.base_model import BaseModel

_Number = TypeVar("_Number", int, float)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Matrix = NDArray[np.float32]

CONFIG: Final = "adapter_config.json"
WEIGHTS: Final = "adapter_model.safetensors"
_FORMAT: Final = "1"
"""Part of a cached file's name: grows when the conversion changes."""
_PREFIX: Final = "base_model.model.model.layers."
_GGUF_NAMES: Final = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


class AdapterBroken(Exception):
    """The directory holds no adapter that this base model can be served with; the text says what is wrong."""


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """What adapter_config.json says. The patterns name modules that have a rank or an alpha of their own."""

    rank: int
    alpha: float
    rslora: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)

    def rank_of(self, module: str) -> int:
        """The rank of a module (`model.layers.0.mlp.up_proj`)."""
        return _of_pattern(self.rank_pattern, module, self.rank)

    def alpha_of(self, module: str) -> float:
        """What llama.cpp must divide by the rank to scale the module as PEFT does: by alpha / r, by alpha / sqrt(r) in
        rank-stabilized LoRA (Kalajdzievski 2023, https://arxiv.org/abs/2312.03732)."""
        return self._effective(_of_pattern(self.alpha_pattern, module, self.alpha), self.rank_of(module))

    @property
    def file_alpha(self) -> float:
        """The one alpha that a GGUF file has."""
        return self._effective(self.alpha, self.rank)

    def _effective(self, alpha: float, rank: int) -> float:
        return alpha * math.sqrt(rank) if self.rslora else float(alpha)


def _of_pattern(patterns: Mapping[str, _Number], module: str, default: _Number) -> _Number:
    """The value of the first pattern that is the module's name or its end. PEFT also takes regular expressions there,
    which are not run here."""
    return next((v for p, v in patterns.items() if module == p or module.endswith(f".{p}")), default)


def converted(adapter: Path, base: BaseModel, cache: Path) -> Path:
    """The GGUF file of the adapter in a directory, out of the cache or made now.

    Raises AdapterBroken for a directory that is no adapter of this base model, or when there is no room for the file.
    """
    raw_config, weights = _read(adapter / CONFIG), _read(adapter / WEIGHTS)
    digest = hashlib.sha256(repr((_FORMAT, base)).encode())
    for part in (raw_config, weights):
        digest.update(hashlib.sha256(part).digest())
    target = cache / f"{digest.hexdigest()}.gguf"
    if target.is_file():
        target.touch()
        return target
    config = read_config(raw_config)
    tensors = _renamed(_matrices(weights), config, base)
    try:
        _write(target, tensors, config, base.architecture)
    except OSError as error:
        raise AdapterBroken(f"its copy for llama.cpp cannot be written: {error.strerror or error}") from error
    return target


def read_config(raw: bytes) -> LoraConfig:
    """Reads adapter_config.json; AdapterBroken if it is not one of a plain LoRA."""
    try:
        config = orjson.loads(raw)
        rank, alpha = config["r"], config["lora_alpha"]
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise AdapterBroken(f"{CONFIG} is not the configuration of a LoRA") from error
    patterns = [config.get(key) or {} for key in ("rank_pattern", "alpha_pattern")]
    if not all(isinstance(p, dict) for p in patterns):
        raise AdapterBroken(f"{CONFIG}: rank_pattern and alpha_pattern must be objects")
    ranks, alphas = [rank, *patterns[0].values()], [alpha, *patterns[1].values()]
    if not all(isinstance(r, int) and r > 0 for r in ranks):
        raise AdapterBroken(f"{CONFIG}: r must be a positive whole number")
    if not all(isinstance(a, int | float) and math.isfinite(a) and a > 0 for a in alphas):
        raise AdapterBroken(f"{CONFIG}: lora_alpha must be a number above 0")
    for key in ("use_dora", "modules_to_save", "fan_in_fan_out"):
        if config.get(key):
            raise AdapterBroken(f"{CONFIG}: {key} is not supported")
    return LoraConfig(rank, alpha, bool(config.get("use_rslora")), patterns[0], patterns[1])


def prune(cache: Path, *, most: int, keep: frozenset[Path]) -> None:
    """Deletes the files that were not used for the longest time, above `most`; those of `keep` stay."""
    files = sorted((p for p in cache.glob("*.gguf") if p not in keep), key=lambda p: p.stat().st_mtime, reverse=True)
    for file in files[max(0, most - len(keep)) :]:
        file.unlink(missing_ok=True)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise AdapterBroken(f"{path.name} cannot be read: {error.strerror}") from error


def _matrices(weights: bytes) -> "dict[str, Matrix]":
    """Every tensor of a safetensors file as float32; AdapterBroken if the file is damaged."""
    import numpy as np
    from safetensors import SafetensorError, deserialize

    try:
        tensors = deserialize(weights)  # type: ignore[no-untyped-call]  # the package has no types
    except (SafetensorError, ValueError) as error:
        raise AdapterBroken(f"{WEIGHTS} is damaged: {error}") from error
    found = {}
    for name, tensor in tensors:
        dtype, data, shape = tensor["dtype"], bytes(tensor["data"]), tensor["shape"]
        if dtype == "BF16":  # the upper half of a float32
            matrix = (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
        elif dtype in ("F32", "F16"):
            matrix = np.frombuffer(data, np.float32 if dtype == "F32" else np.float16).astype(np.float32)
        else:
            raise AdapterBroken(f"{WEIGHTS}: {name} has the type {dtype}; float32, float16 and bfloat16 are served")
        if not np.isfinite(matrix).all():
            raise AdapterBroken(f"{WEIGHTS}: {name} holds values that are not finite")
        found[name] = matrix.reshape(shape)
    return found


def _renamed(matrices: "Mapping[str, Matrix]", config: LoraConfig, base: BaseModel) -> "dict[str, Matrix]":
    """The tensors under llama.cpp's names and in its order of rows."""
    import numpy as np

    tensors = {}
    for name, matrix in matrices.items():
        block, module, side = _parsed(name, base)
        outputs, inputs = base.modules[module]
        name_in_model = f"model.layers.{block}.{module}"
        rank = config.rank_of(name_in_model)
        expected = (rank, inputs) if side == "a" else (outputs, rank)
        if matrix.shape != expected:
            raise AdapterBroken(f"{WEIGHTS}: {name} has the shape {matrix.shape}, the base model needs {expected}")
        if side == "b" and module in ("self_attn.q_proj", "self_attn.k_proj"):
            matrix = _rope_order(matrix, base.heads if module == "self_attn.q_proj" else base.kv_heads)
        if side == "b" and (config.alpha_pattern or config.rank_pattern):
            matrix = matrix * np.float32(config.alpha_of(name_in_model) / config.file_alpha)
        tensors[f"blk.{block}.{_GGUF_NAMES[module]}.weight.lora_{side}"] = matrix
    if not tensors:
        raise AdapterBroken(f"{WEIGHTS} holds no tensors")
    for name in tensors:
        other = name[:-1] + ("b" if name.endswith("a") else "a")
        if other not in tensors:
            raise AdapterBroken(f"{WEIGHTS}: a matrix has no partner ({name})")
    return tensors


def _parsed(name: str, base: BaseModel) -> tuple[int, str, str]:
    """Block, module and side (a, b) of a tensor's name in PEFT's layout."""
    block, _, rest = name.removeprefix(_PREFIX).partition(".")
    for side in ("a", "b"):
        module = rest.removesuffix(f".lora_{side.upper()}.weight")
        if module != rest and module in base.modules and name.startswith(_PREFIX) and block.isdecimal():
            if int(block) >= base.blocks:
                raise AdapterBroken(f"{WEIGHTS}: {name} is of a block that the base model lacks ({base.blocks} blocks)")
            return int(block), module, side
    raise AdapterBroken(f"{WEIGHTS}: {name} is no LoRA matrix of a layer that can be adapted")


def _rope_order(matrix: "Matrix", heads: int) -> "Matrix":
    """Rows from transformers' order (halves of a head) to ggml's (pairs)."""
    import numpy as np

    rows, columns = matrix.shape
    paired = matrix.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2)
    return np.ascontiguousarray(paired).reshape(rows, columns)


def _write(target: Path, tensors: "Mapping[str, Matrix]", config: LoraConfig, architecture: str) -> None:
    import gguf

    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".new-") as folder:
        aside = Path(folder) / target.name
        writer = gguf.GGUFWriter(aside, architecture)
        try:
            writer.add_type(gguf.GGUFType.ADAPTER)
            writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
            writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, config.file_alpha)
            for name, matrix in tensors.items():
                writer.add_tensor(name, matrix)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()
        with aside.open("rb+") as file:
            os.fsync(file.fileno())
        aside.replace(target)
