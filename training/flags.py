"""The flags that make a run's configuration, for every command that starts one."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hivemind.cli.home import home_folder
from hivemind.training.sft_config import DataChoice, Gates, RecipeChoice, SftConfig


def add_config_flags(parser: argparse.ArgumentParser) -> None:
    """Data, recipe and back end. Nothing has a default but what `config_from_flags` makes of it."""
    parser.add_argument("--data", nargs="+", action="extend", default=[], metavar="PATH",
                        help="JSONL, JSON or Parquet files, or folders, instead of the hub")  # fmt: skip
    parser.add_argument("--heldout", nargs="+", action="extend", default=[], metavar="PATH",
                        help="what to test on, instead of a share of the data")  # fmt: skip
    parser.add_argument("--licence", default="", help="what the files are under, as an SPDX expression")
    parser.add_argument("--allow-non-commercial", action="store_true", help="take sources that forbid commercial use")
    parser.add_argument("--limit", type=int, default=0, metavar="N", help="samples at most")
    parser.add_argument("--max-steps", type=int, metavar="N", help="optimizer steps at most")
    parser.add_argument("--rank", type=int, metavar="N", help="rank of the adapter")
    parser.add_argument("--learning-rate", type=float, metavar="X")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads")
    parser.add_argument("--backend", choices=("auto", "unsloth", "cpu"), default="auto")
    parser.add_argument("--cpu", action="store_const", const="cpu", dest="backend", help="as --backend cpu")


def config_from_flags(
    options: argparse.Namespace, environment: Mapping[str, str], *, role: str, gates: Gates
) -> SftConfig:
    """The configuration that the flags name; it is not checked yet."""
    data = DataChoice(
        paths=_absolute(options.data), heldout_paths=_absolute(options.heldout), licence=options.licence,
        mixture="" if options.data else "default", limit=options.limit,
        allow_non_commercial=options.allow_non_commercial,
    )  # fmt: skip
    recipe = RecipeChoice(rank=options.rank, learning_rate=options.learning_rate, max_steps=options.max_steps)
    more: dict[str, Any] = {} if options.threads is None else {"threads": options.threads}
    return SftConfig(
        home=str(home_folder(environment)), data=data, recipe=recipe, gates=gates, role=role,
        backend=options.backend, seed=options.seed, **more,
    )  # fmt: skip


def _absolute(paths: list[str]) -> tuple[str, ...]:
    return tuple(str(Path(p).expanduser().resolve()) for p in paths)
