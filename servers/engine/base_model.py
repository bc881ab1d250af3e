"""What an adapter has to fit: the sizes of the base model, read from the head of its GGUF file.

The `gguf` package's reader makes an array of every word of the tokenizer (1.6 s for 49,152 words, with the interpreter
held); here the words are passed over. The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_SCALARS: Final = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING: Final = 8
_ARRAY: Final = 9

Value = int | float | str | None


class BaseModelError(Exception):
    """The base model's file cannot be read, or it is of a kind that takes no adapters here."""


@dataclass(frozen=True, slots=True)
class BaseModel:
    """Sizes of a base model. `modules`: PEFT's name of a linear layer to (outputs, inputs)."""

    architecture: str
    blocks: int
    heads: int
    kv_heads: int
    embedding: int
    feed_forward: int
    head_size: int

    @property
    def modules(self) -> dict[str, tuple[int, int]]:
        """Every linear layer of a block that an adapter may change."""
        query, key = self.heads * self.head_size, self.kv_heads * self.head_size
        return {
            "self_attn.q_proj": (query, self.embedding),
            "self_attn.k_proj": (key, self.embedding),
            "self_attn.v_proj": (key, self.embedding),
            "self_attn.o_proj": (self.embedding, query),
            "mlp.gate_proj": (self.feed_forward, self.embedding),
            "mlp.up_proj": (self.feed_forward, self.embedding),
            "mlp.down_proj": (self.embedding, self.feed_forward),
        }


def read_base_model(path: Path) -> BaseModel:
    """The sizes of the model in a GGUF file; BaseModelError if it is not a llama-like one or cannot be read."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            values = _metadata(data)
    except (OSError, ValueError, struct.error) as error:
        raise BaseModelError(f"{path}: not a GGUF file that can be read ({error})") from error
    architecture = values.get("general.architecture")
    if architecture != "llama":
        raise BaseModelError(f"{path}: adapters are served on models of the architecture llama, this is {architecture}")
    heads, embedding = _size(values, "attention.head_count"), _size(values, "embedding_length")
    return BaseModel(
        architecture=architecture,
        blocks=_size(values, "block_count"),
        heads=heads,
        kv_heads=_size(values, "attention.head_count_kv", default=heads),
        embedding=embedding,
        feed_forward=_size(values, "feed_forward_length"),
        head_size=_size(values, "attention.key_length", default=embedding // heads),
    )


def _size(values: dict[str, Value], key: str, *, default: int | None = None) -> int:
    value = values.get(f"llama.{key}", default)
    if not isinstance(value, int) or value <= 0:
        raise BaseModelError(f"the base model's file says nothing usable of llama.{key}")
    return value


def _metadata(data: mmap.mmap) -> dict[str, Value]:
    """The key-value pairs of the head; an array counts as None."""
    magic, version, _, count = struct.unpack_from("<4sIQQ", data, 0)
    if magic != b"GGUF" or version < 2:
        raise ValueError(f"it begins with {magic!r}, version {version}")
    values: dict[str, Value] = {}
    at = 24
    for _ in range(count):
        key, at = _string(data, at)
        (kind,) = struct.unpack_from("<I", data, at)
        values[key], at = _value(data, at + 4, kind)
    return values


def _value(data: mmap.mmap, at: int, kind: int) -> tuple[Value, int]:
    if kind == _STRING:
        return _string(data, at)
    if kind == _ARRAY:
        return None, _after_array(data, at)
    if kind not in _SCALARS:
        raise ValueError(f"a value of the unknown type {kind}")
    form = _SCALARS[kind]
    (value,) = struct.unpack_from(form, data, at)
    return value, at + struct.calcsize(form)


def _after_array(data: mmap.mmap, at: int) -> int:
    kind, length = struct.unpack_from("<IQ", data, at)
    at += 12
    if kind in _SCALARS:
        return at + int(length) * struct.calcsize(_SCALARS[kind])
    for _ in range(length):
        if kind == _STRING:
            at += 8 + int(struct.unpack_from("<Q", data, at)[0])
        else:
            _, at = _value(data, at, kind)
    return at


def _string(data: mmap.mmap, at: int) -> tuple[str, int]:
    (length,) = struct.unpack_from("<Q", data, at)
    end = at + 8 + int(length)
    if end > len(data):
        raise ValueError("it ends in the middle of its head")
    return data[at + 8 : end].decode(errors="replace"), end
