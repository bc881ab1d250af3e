"""What the licences of data allow. The table is `sources.json`; datasets/LICENSES.md tells the reasons."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final, Literal

Use = Literal["commercial", "non-commercial", "unknown"]

TABLE: Final = Path(__file__).parent / "sources.json"
_FREE: Final = frozenset(
    {
        "0BSD", "AFL-3.0", "Apache-2.0", "Artistic-2.0", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC-BY-3.0",
        "CC-BY-4.0", "CC-BY-SA-3.0", "CC-BY-SA-4.0", "CC0-1.0", "CDLA-Permissive-1.0", "CDLA-Permissive-2.0", "ISC",
        "LicenseRef-own-work", "MIT", "MIT-0", "ODC-By-1.0", "PDDL-1.0", "Unlicense", "Zlib",
    }
)  # fmt: skip
_NOT_COMMERCIAL: Final = re.compile(r"(^|[^a-z])(nc|non-?commercial|research-only)([^a-z]|$)", re.IGNORECASE)
_OPERATOR: Final = re.compile(r"\s+(AND|OR)\s+|[()]")


@dataclass(frozen=True, slots=True)
class Source:
    """A reviewed source: its licence as an SPDX expression, what it allows, and who made its answers."""

    licence: str
    use: Use
    model_outputs: str


@cache
def reviewed() -> Mapping[str, Source]:
    """The reviewed sources by name."""
    return {name: Source(**entry) for name, entry in json.loads(TABLE.read_text(encoding="utf-8")).items()}


def use_of(licence: str) -> Use:
    """What an SPDX expression allows: non-commercial where any part says so, commercial where each part is known to."""
    if _NOT_COMMERCIAL.search(licence):
        return "non-commercial"
    parts = [p.strip() for p in _OPERATOR.split(licence) if p and p.strip() not in ("", "AND", "OR")]
    return "commercial" if parts and all(p in _FREE for p in parts) else "unknown"
