"""Small JSON files that two processes share."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson


def read_object(path: Path) -> dict[str, Any] | None:
    """The JSON object of a file; None where there is none that can be read."""
    try:
        found = orjson.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def write_object(path: Path, data: Mapping[str, Any]) -> None:
    """Writes a file so that a reader sees all of it or none; dataclasses within it become objects."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_bytes(orjson.dumps(data))
    aside.replace(path)
