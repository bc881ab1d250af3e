"""The two back ends: which one a machine can run, and a model with a fresh adapter on it."""

import importlib.util
from dataclasses import dataclass
from typing import Any, Final, Literal

from hivemind.training.base_model import Base, load_model, load_tokenizer
from hivemind.training.sft_config import Backend, ConfigError, Recipe

Chosen = Literal["unsloth", "cpu"]
TARGETS: Final = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that is ready to train, and its tokenizer."""

    model: Any
    tokenizer: Any


def choose_backend(wanted: Backend) -> tuple[Chosen, str]:
    """The back end and the reason for it. ConfigError where the wanted one cannot run here; nothing is loaded."""
    if importlib.util.find_spec("torch") is None:
        raise ConfigError("backend", "torch is not installed; run make install-train, or pip install 'hivemind[train]'")
    import torch

    if wanted == "cpu":
        return "cpu", "it was asked for"
    missing = _missing_for_unsloth(cuda=torch.cuda.is_available())
    if not missing:
        return "unsloth", "CUDA and unsloth are here" if wanted == "auto" else "it was asked for"
    if wanted == "unsloth":
        raise ConfigError("backend", f"unsloth cannot run here: {missing}; use --backend cpu, or auto")
    return "cpu", missing


def _missing_for_unsloth(*, cuda: bool) -> str:
    """What unsloth lacks; empty: nothing. Importing it without CUDA fails, so it is only looked for."""
    if not cuda:
        return "torch.cuda.is_available() is false"
    if importlib.util.find_spec("unsloth") is None:
        return "the package unsloth is not installed (pip install 'hivemind[gpu]')"
    return ""


def wake(backend: Chosen) -> None:
    """Imports what has to be imported before transformers, trl and peft, because it patches them."""
    if backend == "unsloth":
        import unsloth  # noqa: F401


def load_trainable(backend: Chosen, base: Base, recipe: Recipe, seed: int) -> Loaded:
    """The base model with a fresh LoRA adapter, whose start depends on the seed alone."""
    return _load_unsloth(base, recipe, seed) if backend == "unsloth" else _load_cpu(base, recipe, seed)


def _load_cpu(base: Base, recipe: Recipe, seed: int) -> Loaded:
    import torch
    from peft import LoraConfig, get_peft_model

    tokenizer, model = load_tokenizer(base.folder), load_model(base.folder)
    torch.manual_seed(seed)
    adapter = LoraConfig(
        r=recipe.rank, lora_alpha=recipe.alpha, lora_dropout=0.0, bias="none", target_modules=list(TARGETS),
        task_type="CAUSAL_LM",
    )  # fmt: skip
    return Loaded(get_peft_model(model, adapter), tokenizer)


def _load_unsloth(base: Base, recipe: Recipe, seed: int) -> Loaded:
    from unsloth import FastLanguageModel

    model, tokenizer = FastLanguageModel.from_pretrained(
        model_name=str(base.folder), max_seq_length=recipe.max_seq_length, dtype=None, load_in_4bit=True
    )
    model = FastLanguageModel.get_peft_model(
        model, r=recipe.rank, lora_alpha=recipe.alpha, lora_dropout=0, bias="none", target_modules=list(TARGETS),
        use_gradient_checkpointing="unsloth", random_state=seed,
    )  # fmt: skip
    return Loaded(model, tokenizer)
