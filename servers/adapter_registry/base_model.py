"""The base models that adapters are made for: their names, revision and the shapes of their matrices."""

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

Shape = tuple[int, int]
"""Rows and columns: what comes out, what goes in."""

_MODULES: Final = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TENSOR: Final = re.compile(r"blk\.(\d+)\.([a-z_]+)\.weight")
_QUANTIZATION: Final = re.compile(r"[.-](?:i?q\d\w*|f16|f32|bf16|fp16)$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A base model. `id` is its alias in the catalogue; `names` are the others that it goes by, in small letters.

    `shapes` by module (`model.layers.0.self_attn.q_proj`); empty where the weights cannot be looked at.
    """

    id: str
    names: frozenset[str] = frozenset()
    revision: str = ""
    shapes: Mapping[str, Shape] = field(default_factory=dict)

    def is_called(self, name: str) -> bool:
        """Whether a name from adapter_config.json means this model; the owner before a slash does not count."""
        return plain_name(name) in self.names | {self.id}


def plain_name(name: str) -> str:
    """The last part of a model's name, without file type and quantization, in small letters."""
    last = name.strip().rstrip("/").rpartition("/")[2].removesuffix(".gguf")
    return _QUANTIZATION.sub("", last).lower()


def read_gguf(id: str, path: Path, *, names: frozenset[str] = frozenset(), sha256: str = "") -> BaseModel:
    """Looks at a GGUF file; takes seconds, so never on the event loop. `sha256` is its sum where that is known.

    OSError or ValueError for a file that cannot be read.
    """
    from gguf import GGUFReader

    reader = GGUFReader(path)
    shapes: dict[str, Shape] = {}
    for tensor in reader.tensors:
        found = _TENSOR.fullmatch(tensor.name)
        if found is not None and found[2] in _MODULES:
            columns, rows = (int(n) for n in tensor.shape)
            shapes[f"model.layers.{int(found[1])}.{_MODULES[found[2]]}"] = (rows, columns)
    named = reader.fields.get("general.name")
    own = frozenset({plain_name(path.name)} | ({plain_name(str(named.contents()))} if named is not None else set()))
    return BaseModel(id, names | own, f"sha256:{sha256 or _sum_of(path)}", shapes)


class BaseModels:
    """Finds the base model of a role, looked at once. `makers` by role; other roles get the one for ''."""

    def __init__(self, makers: Mapping[str, Callable[[], BaseModel]]) -> None:
        self._makers = makers
        self._known: dict[str, BaseModel] = {}

    def of(self, role: str) -> BaseModel:
        """The base model; may take seconds the first time."""
        makers, known = self._makers, self._known
        key = role if role in makers else ""
        if key not in known:
            known[key] = makers[key]()
        return known[key]

    def replace(self, makers: Mapping[str, Callable[[], BaseModel]]) -> None:
        """Puts others in force; each is looked at anew."""
        self._makers, self._known = makers, {}


def _sum_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
