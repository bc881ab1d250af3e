"""Merges an adapter into its base: `python -m hivemind.training.merging ADAPTER OUT`, a folder that transformers loads.

For servers that load no adapters. The PEFT folder stays the source of truth; the mesh itself serves adapters beside one
copy of the base.
"""

import argparse
import json
import os
import shutil
import sys
from pathlib import Path

from hivemind.cli.home import home_folder
from hivemind.training.adapter_files import META, sync_folder
from hivemind.training.base_model import Base, load_model, load_tokenizer, prepare_base
from hivemind.training.sft_config import ConfigError, SftConfig


def main(arguments: list[str] | None = None) -> int:
    """Merges; answers the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m hivemind.training.merging", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("adapter", type=Path, help="the folder of a PEFT adapter")
    parser.add_argument("out", type=Path, help="the folder to write, which must not be there yet")
    parser.add_argument("--base-weights", default="", help="a .gguf file or a folder; default: the courier's")
    options = parser.parse_args(arguments)
    try:
        config = SftConfig(home=str(home_folder(os.environ)), base_weights=options.base_weights)
        merge(options.adapter, prepare_base(config, os.environ), options.out)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 5
    return 0


def merge(adapter: Path, base: Base, out: Path) -> None:
    """Writes base plus adapter as safetensors, all at once. ConfigError where it was made for other weights."""
    if out.exists():
        raise ConfigError("out", f"{out} is there already")
    _check_base(adapter, base)
    from peft import PeftModel

    aside = out.with_name(f".{out.name}.{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        merged = PeftModel.from_pretrained(load_model(base.folder), adapter).merge_and_unload()
        merged.save_pretrained(aside)
        load_tokenizer(base.folder).save_pretrained(aside)
        sync_folder(aside)
        aside.rename(out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _check_base(adapter: Path, base: Base) -> None:
    if not (adapter / "adapter_config.json").is_file():
        raise ConfigError("adapter", f"{adapter} holds no adapter")
    try:
        revision = json.loads((adapter / META).read_text(encoding="utf-8")).get("base_revision")
    except (OSError, ValueError, AttributeError):
        return  # from elsewhere, without our papers: its shapes decide
    if revision and revision != base.revision:
        raise ConfigError("adapter", f"{adapter} was made for {revision}, and the base is {base.revision}")


if __name__ == "__main__":
    os.environ.setdefault("TQDM_DISABLE", "1")
    sys.exit(main())
