"""The configuration of a fine-tuning run: one frozen value, kept as `config.json` in the run's folder. Needs no torch.

config = SftConfig(home=str(home), data=DataChoice(paths=(str(file),)))
check(config)                     # ConfigError names field and cure
write_config(run, config)         # then: python -m hivemind.training.sft_text --run RUN
"""

import os
import shutil
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, ClassVar, Final, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

CONFIG_FILE: Final = "config.json"
COURIER: Final = "courier"
"""The base model whose weights every mesh has; another one needs `base_weights`."""
MIXTURES: Final = ("default",)
UNUSABLE: Final = 5
"""The exit code for a configuration or data that cannot be used."""
Backend = Literal["auto", "unsloth", "cpu"]
"""`auto`: unsloth where CUDA and unsloth are there, else cpu."""

_STRICT: Final = ConfigDict(extra="forbid", ser_json_inf_nan="constants")
_Name = Annotated[str, Field(pattern=r"^[a-z0-9._-]{1,64}$")]
_Share = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
_Gate = Annotated[float, Field(ge=-1, le=10, allow_inf_nan=False)]


class ConfigError(ValueError):
    """A configuration that no run can be started with; `field` names the place, the text is one sentence."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field, self.problem = field, problem


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one back end trains. Lengths are in tokens; `batch_size` samples (packed: rows of `max_seq_length`) make one
    optimizer step, `micro_batch` of them at a time go through the model; at most `max_steps` steps and `epochs` passes.
    """

    rank: int
    alpha: int
    learning_rate: float
    max_steps: int
    epochs: float
    batch_size: int
    micro_batch: int
    max_seq_length: int
    packing: bool
    warmup_steps: int
    weight_decay: float
    max_grad_norm: float


CPU_RECIPE: Final = Recipe(
    rank=16, alpha=16, learning_rate=5e-4, max_steps=100, epochs=3.0, batch_size=8, micro_batch=8,
    max_seq_length=512, packing=False, warmup_steps=0, weight_decay=0.0, max_grad_norm=1.0,
)  # fmt: skip
GPU_RECIPE: Final = Recipe(
    rank=16, alpha=16, learning_rate=2e-4, max_steps=1000, epochs=1.0, batch_size=16, micro_batch=4,
    max_seq_length=4096, packing=True, warmup_steps=10, weight_decay=0.01, max_grad_norm=1.0,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class RecipeChoice:
    """What a run lays down of its recipe; None: as the recipe of the back end says (alpha: the rank)."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    rank: Annotated[int, Field(ge=8, le=256, multiple_of=8)] | None = None
    alpha: Annotated[int, Field(ge=1, le=1024)] | None = None
    learning_rate: Annotated[float, Field(gt=0, le=1e-2, allow_inf_nan=False)] | None = None
    max_steps: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    epochs: Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)] | None = None
    batch_size: Annotated[int, Field(ge=1, le=4096)] | None = None
    micro_batch: Annotated[int, Field(ge=1, le=4096)] | None = None
    max_seq_length: Annotated[int, Field(ge=64, le=131_072)] | None = None
    packing: bool | None = None
    warmup_steps: Annotated[int, Field(ge=0, le=100_000)] | None = None
    weight_decay: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    max_grad_norm: Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)] | None = None

    def on(self, backend: Literal["unsloth", "cpu"]) -> Recipe:
        """The whole recipe on a back end. A batch is a whole number of micro-batches, so these may shrink."""
        base = GPU_RECIPE if backend == "unsloth" else CPU_RECIPE
        chosen = {f.name: getattr(self, f.name) for f in fields(self)}
        whole = {f.name: getattr(base, f.name) if chosen[f.name] is None else chosen[f.name] for f in fields(base)}
        if self.alpha is None:
            whole["alpha"] = whole["rank"]
        whole["micro_batch"] = next(
            n for n in range(min(whole["micro_batch"], whole["batch_size"]), 0, -1) if whole["batch_size"] % n == 0
        )
        return Recipe(**whole)


@dataclass(frozen=True, slots=True)
class HubSource:
    """A data set of the hub: `revision` a commit, tag or branch (which is resolved to a commit once, at a run's start),
    `share` its part of the samples that the mixture may have."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*/[\w.-]+$")]
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    revision: Annotated[str, Field(pattern=r"^[\w./-]+$")] = "main"


@dataclass(frozen=True, slots=True)
class DataChoice:
    """Where samples come from.

    `paths`: JSONL, JSON or Parquet files, or folders of them; `licence`: what they are under, as an SPDX expression
    (empty: unknown, which is warned of). `platinum`: the folder of the platinum ledger, empty for none;
    `refused_tenants` are those who have taken their consent back. `mixture`: `default` blends the public sets, or those
    of `hub` where it names some. `limit`: most samples in all, 0 for no limit but the mixture's. `replay`: the share of
    training samples that are plain text and questions shipped with hivemind, against forgetting. `holdout`: the share
    kept back for the evaluation, `holdout_max` samples at most; or `heldout_paths` name what is held out.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    paths: tuple[str, ...] = ()
    licence: Annotated[str, Field(max_length=200)] = ""
    platinum: str = ""
    refused_tenants: tuple[str, ...] = ()
    mixture: str = ""
    hub: tuple[HubSource, ...] = ()
    heldout_paths: tuple[str, ...] = ()
    limit: Annotated[int, Field(ge=0)] = 0
    allow_non_commercial: bool = False
    replay: _Share = 0.25
    holdout: _Share = 0.1
    holdout_max: Annotated[int, Field(ge=1, le=10_000)] = 64


@dataclass(frozen=True, slots=True)
class Gates:
    """What a result must reach to be worth registering. All are shares of a loss: 0.02 is 2%.

    `min_gain`: by how much the held-out loss must lie below the base's; `max_against_champion`: by how much it may lie
    above the champion's; `max_questions`, `max_text`: by how much the loss on unrelated questions and on plain text may
    rise above the base's; `min_win_rate` counts only where a judge compared answers.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    min_gain: _Gate = 0.0
    max_against_champion: _Gate = 0.0
    max_questions: _Gate = 0.02
    max_text: _Gate = 0.02
    min_win_rate: Annotated[float, Field(ge=0, le=1)] = 0.5


@dataclass(frozen=True, slots=True)
class SftConfig:
    """A run. Paths are absolute.

    `home`: the state folder, whose `cache/` takes converted weights. `base`: the catalogue's id of the base model;
    `base_weights`: a .gguf file, a folder with a transformers model, or hf://owner/name (GPU only); empty: the
    courier's own (HIVEMIND_COURIER, else the wheel's). `champion`: the folder of the adapter to beat, empty for none;
    `parent`: its id. `threads` and `niceness` of the process; `checkpoint_steps` steps between checkpoints.
    `judge`: whether the Judge of the mesh that runs on `home` compares answers, where it has one. `max_train_s`:
    training ends after these seconds and what was learnt is evaluated; 0 for no limit.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    home: str
    data: DataChoice = DataChoice()
    recipe: RecipeChoice = RecipeChoice()
    gates: Gates = Gates()
    schema_version: Literal[1] = 1
    role: _Name = "implementer"
    base: _Name = COURIER
    base_weights: str = ""
    champion: str = ""
    parent: str = ""
    backend: Backend = "auto"
    seed: Annotated[int, Field(ge=0, lt=1 << 32)] = 0
    threads: Annotated[int, Field(ge=1, le=1024)] = field(default_factory=lambda: max(1, (os.cpu_count() or 2) - 1))
    niceness: Annotated[int, Field(ge=0, le=19)] = 10
    checkpoint_steps: Annotated[int, Field(ge=1, le=100_000)] = 20
    judge: bool = False
    max_train_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0


_ADAPTER: Final = TypeAdapter(SftConfig)


def from_json(text: str | bytes) -> SftConfig:
    """The configuration in a text; ConfigError where a field is missing, unknown or out of its range."""
    try:
        return _ADAPTER.validate_json(text)
    except ValidationError as error:
        raise _refusal(error) from error


def to_json(config: SftConfig) -> str:
    """The text that `from_json` reads."""
    return _ADAPTER.dump_json(config, indent=1).decode() + "\n"


def check(config: SftConfig) -> None:
    """Everything that can be known before a run starts; raises ConfigError."""
    from_json(to_json(config))
    _check_data(config.data)
    if config.base != COURIER and not config.base_weights:
        raise ConfigError("base", f"{config.base} is unknown here: give base_weights, or take {COURIER}")
    if config.base_weights and not config.base_weights.startswith("hf://") and not Path(config.base_weights).exists():
        raise ConfigError("base_weights", f"{config.base_weights} is not there")
    if config.champion and not (Path(config.champion) / "adapter_config.json").is_file():
        raise ConfigError("champion", f"{config.champion} holds no adapter")


def _check_data(data: DataChoice) -> None:
    if data.mixture not in ("", *MIXTURES):
        raise ConfigError("data.mixture", f"{data.mixture!r} is unknown; known are {', '.join(MIXTURES)}")
    if not (data.paths or data.platinum or data.mixture):
        raise ConfigError("data", "names no source: give paths, the platinum ledger or a mixture")
    if data.hub and not data.mixture:
        raise ConfigError("data.hub", "names sources of a mixture, and data.mixture is empty")
    for name, paths in (("data.paths", data.paths), ("data.heldout_paths", data.heldout_paths)):
        for path in paths:
            if not Path(path).exists():
                raise ConfigError(name, f"{path} is not there")
    if data.platinum and not Path(data.platinum).is_dir():
        raise ConfigError("data.platinum", f"{data.platinum} is no folder; it should hold training_metadata.jsonl")


def read_config(run: Path) -> SftConfig:
    """The configuration of a run's folder; ConfigError where there is none that can be read."""
    try:
        return from_json((run / CONFIG_FILE).read_bytes())
    except OSError as error:
        raise ConfigError(CONFIG_FILE, f"{run / CONFIG_FILE} cannot be read ({error.strerror})") from error


def write_config(run: Path, config: SftConfig) -> None:
    """Writes config.json so that a reader sees all of it or none."""
    run.mkdir(parents=True, exist_ok=True)
    aside = run / f".{CONFIG_FILE}.{os.getpid()}"
    aside.write_text(to_json(config), encoding="utf-8")
    aside.replace(run / CONFIG_FILE)


def prepare_run(run: Path, config: SftConfig, *, force: bool = False) -> None:
    """The run's folder, with what an earlier start left in it if that was for the same configuration; else ConfigError,
    unless `force` drops what is there."""
    if (run / CONFIG_FILE).exists():
        if read_config(run) == config:
            return
        if not force:
            raise ConfigError(
                "run",
                f"{run} was started with other options; take another folder, or drop that one (bootstrap: --force)",
            )
        shutil.rmtree(run)
    write_config(run, config)


def _refusal(error: ValidationError) -> ConfigError:
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or CONFIG_FILE
    given = "" if first["type"] in ("missing", "json_invalid") else f", not {first['input']!r}"
    return ConfigError(where, f"{first['msg'][:1].lower()}{first['msg'][1:]}{given}")


def main(arguments: list[str] | None = None) -> int:
    """`--check RUN/config.json`: 0 if the run can be started, else 5 and `field: problem` on standard error."""
    import argparse
    import sys

    from hivemind.training.data_check import check_data, check_installed

    parser = argparse.ArgumentParser(prog="python -m hivemind.training.sft_config")
    parser.add_argument("--check", type=Path, required=True, metavar="FILE", help="the config.json of a run")
    file = parser.parse_args(arguments).check
    try:
        config = read_config(file.parent)
        check(config)
        check_installed()
        check_data(config.data)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return UNUSABLE
    return 0


if __name__ == "__main__":
    from hivemind.training import sft_config  # so that its errors are those that data_check raises

    raise SystemExit(sft_config.main())
