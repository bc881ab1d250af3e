"""The base model as transformers wants it: a folder with safetensors, made once from the courier's GGUF file.

The conversion takes half a minute and lies in HIVEMIND_HOME/cache/base/<sum>. What the GGUF loader of transformers gets
wrong is put right here: the end of a turn, the padding token, and the marks of a quantised model.
"""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hivemind.servers.common.courier import Hub, Local, ModelError, Remote, checked_file, resolve_courier
from hivemind.training.adapter_files import sync_folder
from hivemind.training.sft_config import ConfigError, SftConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CONVERSION: Final = 1
"""Grows when the converted folder would come out differently."""
_HUB_FILES: Final = ("*.json", "*.safetensors", "*.model", "*.jinja", "*.txt")


@dataclass(frozen=True, slots=True)
class Base:
    """A base model on disk. `id` is the catalogue's, `revision` names the weights: file sum or hub commit."""

    id: str
    folder: Path
    revision: str


def prepare_base(config: SftConfig, environment: Mapping[str, str]) -> Base:
    """The folder of the base model, converted or fetched first where it has to be.

    ConfigError with the cure where there are no weights to train on.
    """
    cache = Path(config.home) / "cache"
    named = config.base_weights or environment.get("HIVEMIND_COURIER", "")
    if config.base_weights and Path(named).is_dir():
        return Base(config.base, Path(named), f"sha256:{_sum_of_folder(Path(named))}")
    if config.base_weights.startswith("hf://") and not named.endswith(".gguf"):
        return _from_hub(config, named.removeprefix("hf://"))
    try:
        where = resolve_courier(named)
        if isinstance(where, Remote):
            raise ConfigError("base_weights", f"{named} is a server and has no weights to train; give a .gguf file")
        gguf = checked_file(where, cache)
    except ModelError as error:
        raise ConfigError("base_weights", str(error)) from error
    return _converted(config.base, gguf, where, cache)


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer of a prepared folder."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def load_model(folder: Path) -> "PreTrainedModel":
    """The model of a prepared folder in float32, on the CPU."""
    import torch
    from transformers import AutoModelForCausalLM

    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model


def _converted(id: str, gguf: Path, where: Local | Hub, cache: Path) -> Base:
    sha256 = where.sha256 if isinstance(where, Local) and where.sha256 else _sum_of(gguf)
    target = cache / "base" / f"{sha256[:16]}-{CONVERSION}"
    base = Base(id, target, f"sha256:{sha256}")
    if target.is_dir():
        return base
    with _only_one(cache / "base"):
        if not target.is_dir():
            for left in target.parent.glob(f".{target.name}.*"):  # of a conversion that was killed
                shutil.rmtree(left, ignore_errors=True)
            aside = target.with_name(f".{target.name}.{os.getpid()}")
            try:
                _convert(gguf, aside)
                sync_folder(aside)
                aside.replace(target)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
    return base


def _convert(gguf: Path, aside: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    _mend_tokenizer(tokenizer, gguf)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    _forget_quantization(model)
    model.generation_config.eos_token_id = model.config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = model.config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(aside)
    tokenizer.save_pretrained(aside)


def _mend_tokenizer(tokenizer: Any, gguf: Path) -> None:
    """The loader gives SmolLM2 `<|im_start|>` for the end of a turn and nothing to pad with; the file knows better."""
    from gguf import GGUFReader

    fields = GGUFReader(gguf).fields

    def token(name: str) -> str | None:
        field = fields.get(f"tokenizer.ggml.{name}_token_id")
        return None if field is None else str(tokenizer.convert_ids_to_tokens(int(field.contents())))

    tokenizer.eos_token = token("eos") or tokenizer.eos_token
    tokenizer.pad_token = token("padding") or tokenizer.eos_token
    tokenizer.clean_up_tokenization_spaces = False


def _forget_quantization(model: Any) -> None:
    """The weights are dequantised; `save_pretrained` refuses a model that still says it is not."""
    for name in ("hf_quantizer", "is_quantized", "quantization_method"):
        model.__dict__.pop(name, None)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def _from_hub(config: SftConfig, name: str) -> Base:
    try:
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(name, allow_patterns=list(_HUB_FILES)))
    except (OSError, ValueError, RuntimeError) as error:
        cure = "check name and network, or give a folder or a .gguf file of this machine"
        raise ConfigError("base_weights", f"hf://{name} cannot be fetched ({type(error).__name__}); {cure}") from error
    return Base(config.base, folder, folder.name)


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Lets one process convert; the others wait for it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _sum_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sum_of_folder(folder: Path) -> str:
    sums = [f"{file.name} {_sum_of(file)}" for file in sorted(folder.glob("*.safetensors"))]
    return hashlib.sha256("\n".join(sums).encode()).hexdigest()
