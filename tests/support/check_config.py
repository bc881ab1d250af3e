"""The check of a run's configuration, as `python -m hivemind.training.sft_config --check FILE` makes it."""

import sys
from pathlib import Path

from hivemind.training.sft_config import ConfigError, check, from_json

try:
    check(from_json(Path(sys.argv[-1]).read_bytes()))
except ConfigError as error:
    sys.exit((print(error, file=sys.stderr), 5)[1])
