"""Writes the adapter of a run: all of it or nothing, and the same bytes for the same weights."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

CONFIG: Final = "adapter_config.json"
WEIGHTS: Final = "adapter_model.safetensors"
META: Final = "adapter_meta.json"
_LICENCE_MAX: Final = 500


@dataclass(frozen=True, slots=True)
class AdapterMeta:
    """What adapter_meta.json tells; `evaluation` maps names to finite numbers. `scale` is folded into lora_alpha, since
    LoRAX and vLLM have none per request."""

    role: str
    base_model: str
    base_revision: str
    parent: str
    first_sequence: int
    last_sequence: int
    data_licence: str
    evaluation: Mapping[str, float]
    hyper_parameters: Mapping[str, Any]
    scale: float = 1.0


def write_adapter(model: Any, tokenizer: Any, target: Path, meta: AdapterMeta) -> None:
    """Writes aside, brings it to the disk, renames. A target that is there already stays as it is."""
    if target.exists():
        return
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        model.save_pretrained(aside)
        tokenizer.save_pretrained(aside)
        (aside / "README.md").unlink(missing_ok=True)
        _settle_config(aside / CONFIG, meta.base_model, meta.scale)
        _write_meta(aside, meta)
        sync_folder(aside)
        aside.rename(target)
        sync_path(target.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Brings the files of a folder, and their names, to the disk."""
    for path in folder.iterdir():
        sync_path(path)
    sync_path(folder)


def _settle_config(path: Path, base_model: str, scale: float) -> None:
    """Puts PEFT's sets in an order, and names the base by its id: a path of this machine means nothing elsewhere."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = base_model
    if scale != 1:
        config["lora_alpha"] *= scale
    for name, value in config.items():
        if isinstance(value, list) and all(isinstance(v, str) for v in value):
            config[name] = sorted(value)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_meta(folder: Path, meta: AdapterMeta) -> None:
    with (folder / WEIGHTS).open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    fields = {
        "role": meta.role, "base_model": meta.base_model, "base_revision": meta.base_revision, "parent": meta.parent,
        "first_sequence": meta.first_sequence, "last_sequence": meta.last_sequence,
        "data_licence": meta.data_licence[:_LICENCE_MAX], "evaluation": dict(meta.evaluation),
        "hyper_parameters": dict(meta.hyper_parameters), "sha256": sha256,
    }  # fmt: skip
    (folder / META).write_text(json.dumps(fields, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def sync_path(path: Path) -> None:
    """Brings a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
