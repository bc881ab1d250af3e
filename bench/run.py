"""Runs one benchmark: `python bench/run.py NAME [options]` (`make bench NAME=gateway`)."""

import importlib
import sys
from pathlib import Path

_PARTS = (
    "run", "load", "mock_upstream", "routing_targets", "adapters_tokens",
    "clients", "closed_loop", "facts", "figures", "forgetting", "mesh", "scripted_master",
)  # fmt: skip
NAMES = sorted(p.stem for p in Path(__file__).parent.glob("*.py") if p.stem not in _PARTS)


def main() -> None:
    """Finds the benchmark and hands it the rest of the arguments."""
    if len(sys.argv) < 2 or sys.argv[1] not in NAMES:
        sys.exit(f"name a benchmark: make bench NAME={'|'.join(NAMES)}")
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    importlib.import_module(f"bench.{sys.argv[1]}").main(sys.argv[2:])


if __name__ == "__main__":
    main()
