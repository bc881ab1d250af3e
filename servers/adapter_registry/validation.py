"""What a PEFT directory must be before it is registered. Each refusal is ADAPTER_INVALID and names file and problem."""

import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, Final

from hivemind.servers.adapter_registry.base_model import BaseModel
from hivemind.servers.adapter_registry.safetensors_file import BrokenFile, Tensor, first_infinite, read_header
from hivemind.servers.common.errors import MeshError

CONFIG: Final = "adapter_config.json"
WEIGHTS: Final = "adapter_model.safetensors"
META: Final = "adapter_meta.json"
_TOKENIZER: Final = frozenset(
    {
        "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
        "merges.txt", "tokenizer.model", "chat_template.jinja",
    }
)  # fmt: skip
STORED: Final = frozenset({CONFIG, WEIGHTS, META, "README.md", "LICENSE"}) | _TOKENIZER
"""The files that a stored version has; others are left behind."""
_PICKLES: Final = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz")
_NAME: Final = re.compile(r"[A-Za-z0-9._-]+")
_MATRIX: Final = re.compile(r"base_model\.model\.([A-Za-z0-9_.]+)\.lora_([AB])(?:\.default)?\.weight")
_JSON_MAX: Final = 1 << 20
_WEIGHTS_MAX: Final = 8 << 30
_RANK_MAX: Final = 1024
_UNSERVED: Final = ("use_dora", "modules_to_save", "lora_bias", "trainable_token_indices", "layer_replication")


@dataclass(frozen=True, slots=True)
class Meta:
    """What adapter_meta.json tells. `first_sequence`, `last_sequence`: the platinum data it saw; 0 for none."""

    base_model: str = ""
    base_revision: str = ""
    parent: str = ""
    first_sequence: int = 0
    last_sequence: int = 0
    data_licence: str = ""
    evaluation: Mapping[str, float] = field(default_factory=dict)
    hyper_parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CheckedAdapter:
    """A directory that passed. `digest` names weights and configuration together: lora_alpha is not in the weights."""

    rank: int
    sha256: str
    size_bytes: int
    digest: str
    meta: Meta


def invalid(file: str, problem: str) -> MeshError:
    """The refusal for one file."""
    return MeshError("ADAPTER_INVALID", f"{file}: {problem}", metadata={"file": file, "problem": problem})


def locate(text: str, roots: Sequence[Path]) -> Path:
    """The directory that a request names: relative to one of `roots`, or absolute inside one. No `..`, no links on the
    way."""
    pure = PurePath(text)
    if not text or ".." in pure.parts or "\x00" in text:
        raise invalid(text or "path", "must be a folder under HIVEMIND_HOME or the adapters' folder, without ..")
    for root in (r.resolve() for r in roots):
        relative = _below(pure, root)
        if relative is not None and (root / relative).is_dir():
            _refuse_links(root, relative)
            return root / relative
    if pure.is_absolute() and all(_below(pure, r.resolve()) is None for r in roots):
        raise invalid(text, "is outside HIVEMIND_HOME and the adapters' folder")
    raise invalid(text, "there is no such folder under HIVEMIND_HOME or the adapters' folder")


def check_entries(folder: Path) -> list[str]:
    """The files of a directory that a stored version takes over. Refuses links, folders, pickles and odd names."""
    names = []
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda e: e.name):
            mode = entry.stat(follow_symlinks=False).st_mode
            if stat.S_ISLNK(mode):
                raise invalid(entry.name, "is a symbolic link")
            if not stat.S_ISREG(mode):
                raise invalid(entry.name, "is not a plain file")
            if not _NAME.fullmatch(entry.name):
                raise invalid(ascii(entry.name), "has an odd name")
            if entry.name.lower().endswith(_PICKLES) or _is_pickle(Path(entry.path)):
                raise invalid(entry.name, "is a pickle or may hold one; only safetensors are taken")
            names.append(entry.name)
    for needed in (CONFIG, WEIGHTS):
        if needed not in names:
            raise invalid(needed, "is missing")
    return [n for n in names if n in STORED]


def check_directory(folder: Path, base: BaseModel) -> CheckedAdapter:
    """Checks configuration, weights and meta against the base model. Reads every byte; not for the event loop."""
    config = _json(folder / CONFIG)
    rank = _check_config(config)
    weights = folder / WEIGHTS
    size = weights.stat().st_size
    if size > _WEIGHTS_MAX:
        raise invalid(WEIGHTS, f"is larger than {_WEIGHTS_MAX} bytes")
    try:
        tensors = read_header(weights)
        _check_tensors(tensors, config, rank, base)
        infinite = first_infinite(weights, tensors)
    except BrokenFile as error:
        raise invalid(WEIGHTS, str(error)) from error
    if infinite is not None:
        raise invalid(WEIGHTS, f"{infinite} holds NaN or infinity")
    with weights.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    meta = _check_meta(folder, config, base, sha256)
    canonical = json.dumps(config, sort_keys=True).encode()
    return CheckedAdapter(rank, sha256, size, hashlib.sha256(sha256.encode() + canonical).hexdigest(), meta)


def _below(path: PurePath, root: Path) -> PurePath | None:
    """The path relative to the root; None if it is not inside it, or is the root itself."""
    if path.is_absolute():
        if not path.is_relative_to(root):
            return None
        path = path.relative_to(root)
    return path if path.parts else None


def _refuse_links(root: Path, relative: PurePath) -> None:
    at = root
    for part in relative.parts:
        at = at / part
        if at.is_symlink():
            raise invalid(str(relative), f"{part} is a symbolic link")


def _is_pickle(path: Path) -> bool:
    """By content: a pickle's PROTO opcode (protocol 2 and up) or a zip archive, as torch.save writes."""
    with path.open("rb") as file:
        head = file.read(4)
    return (len(head) > 1 and head[0] == 0x80 and 2 <= head[1] <= 5) or head == b"PK\x03\x04"


def _json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _JSON_MAX:
            raise invalid(path.name, f"is larger than {_JSON_MAX} bytes")
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise invalid(path.name, "is not JSON") from error
    if not isinstance(found, dict):
        raise invalid(path.name, "is not a JSON object")
    return found


def _check_config(config: dict[str, Any]) -> int:
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if config.get("peft_type") != "LORA":
        raise invalid(CONFIG, f"peft_type is {config.get('peft_type')!r}; LORA is served")
    if type(rank) is not int or not 0 < rank <= _RANK_MAX:
        raise invalid(CONFIG, f"r is {rank!r}; it must be a whole number from 1 to {_RANK_MAX}")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not math.isfinite(alpha) or alpha <= 0:
        raise invalid(CONFIG, f"lora_alpha is {alpha!r}; it must be a number above 0")
    targets = config.get("target_modules")
    if not (isinstance(targets, str) or (isinstance(targets, list) and targets)):
        raise invalid(CONFIG, "target_modules names no module")
    for name in _UNSERVED:
        if config.get(name):
            raise invalid(CONFIG, f"{name} is set, which no server of this mesh serves")
    if config.get("bias", "none") != "none":
        raise invalid(CONFIG, "bias must be 'none'")
    return rank


def _check_tensors(tensors: Sequence[Tensor], config: dict[str, Any], rank: int, base: BaseModel) -> None:
    sides: dict[str, dict[str, Tensor]] = {}
    for tensor in tensors:
        found = _MATRIX.fullmatch(tensor.name)
        if found is None:
            raise invalid(WEIGHTS, f"{tensor.name!r} is not a LoRA matrix in PEFT's layout")
        if len(tensor.shape) != 2:
            raise invalid(WEIGHTS, f"{tensor.name} has {len(tensor.shape)} dimensions, not 2")
        sides.setdefault(found[1], {})[found[2]] = tensor
    if not sides:
        raise invalid(WEIGHTS, "holds no tensors")
    for module, pair in sides.items():
        _check_module(module, pair, config, rank, base)


def _check_module(module: str, pair: Mapping[str, Tensor], config: dict[str, Any], rank: int, base: BaseModel) -> None:
    if set(pair) != {"A", "B"}:
        raise invalid(WEIGHTS, f"{module} has no lora_{'B' if 'A' in pair else 'A'}")
    (inner, columns), (rows, outer) = pair["A"].shape, pair["B"].shape
    wanted = _pattern(config.get("rank_pattern"), module, rank)
    if inner != wanted or outer != wanted:
        raise invalid(WEIGHTS, f"{module} has rank {inner} (A) and {outer} (B), and {CONFIG} says {wanted}")
    targets = config["target_modules"]
    if isinstance(targets, list) and not any(module == t or module.endswith(f".{t}") for t in targets):
        raise invalid(WEIGHTS, f"{module} is not among the target_modules of {CONFIG}")
    if not base.shapes:
        return
    shape = base.shapes.get(module)
    if shape is None:
        raise invalid(WEIGHTS, f"the base model {base.id} has no {module}")
    if shape != (rows, columns):
        raise invalid(
            WEIGHTS, f"{module} is {rows} x {columns}, and the base model {base.id} has {shape[0]} x {shape[1]}"
        )


def _pattern(patterns: object, module: str, default: int) -> int:
    """PEFT's rank_pattern: the first key that is the module's name or the end of it."""
    if isinstance(patterns, dict):
        for name, value in patterns.items():
            if module == name or module.endswith(f".{name}"):
                return int(value) if type(value) is int else default
    return default


def _check_meta(folder: Path, config: dict[str, Any], base: BaseModel, sha256: str) -> Meta:
    found = _json(folder / META) if (folder / META).is_file() else {}
    meta = _meta_of(found)
    if found.get("sha256") not in (None, "", sha256):
        raise invalid(META, f"sha256 is not that of {WEIGHTS}")
    named = config.get("base_model_name_or_path")
    if meta.base_model:
        if not base.is_called(meta.base_model):
            raise invalid(META, f"base_model is {meta.base_model!r}, and the role's is {base.id}")
    elif isinstance(named, str) and named and not named.startswith((".", "/", "~")) and not base.is_called(named):
        # a path on the machine that trained it names no model: there the shapes decide
        names = ", ".join(sorted({base.id, *base.names}))
        raise invalid(CONFIG, f"base_model_name_or_path is {named!r}, and the role's base model is called {names}")
    revision = meta.base_revision
    if revision.startswith("sha256:") and base.revision and revision != base.revision:
        raise invalid(META, f"base_revision is {revision}, and the role's base model is {base.revision}")
    return meta


def _meta_of(found: dict[str, Any]) -> Meta:
    evaluation = found.get("evaluation") or {}
    if not isinstance(evaluation, dict) or not all(_is_number(v) for v in evaluation.values()):
        raise invalid(META, "evaluation must map names to numbers")
    parameters = found.get("hyper_parameters") or {}
    if not isinstance(parameters, dict):
        raise invalid(META, "hyper_parameters must be an object")
    return Meta(
        base_model=_text(found, "base_model"), base_revision=_text(found, "base_revision"),
        parent=_text(found, "parent"),
        first_sequence=_sequence(found, "first_sequence"), last_sequence=_sequence(found, "last_sequence"),
        data_licence=_text(found, "data_licence"), evaluation=dict(evaluation), hyper_parameters=parameters,
    )  # fmt: skip


def _text(found: dict[str, Any], name: str) -> str:
    value = found.get(name) or ""
    if not isinstance(value, str) or len(value) > 500:
        raise invalid(META, f"{name} must be a short text")
    return value


def _sequence(found: dict[str, Any], name: str) -> int:
    value = found.get(name) or 0
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise invalid(META, f"{name} must be a whole number, 0 or more")
    return value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
