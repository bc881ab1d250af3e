"""Writes the Router's records, each with the feedback on it, as lines of JSON."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import quote

from hivemind.cli.home import CommandError

PAGE: Final = 500


class Api(Protocol):
    """What is needed of http_api.MeshApi."""

    def get(self, path: str) -> Any:
        """The JSON of a GET."""


def export(api: Api, file: Path, *, tenant: str) -> int:
    """Writes all records of a tenant, or of all with an empty name, newest first; how many there were.

    The file is there when it is whole, and not before. CommandError if it cannot be written.
    """
    part = file.with_name(f"{file.name}.part")
    try:
        with part.open("w", encoding="utf-8") as lines:
            count = 0
            for record in _records(api, tenant):
                lines.write(json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n")
                count += 1
            lines.flush()
            os.fsync(lines.fileno())
        part.replace(file)
    except OSError as error:
        raise CommandError(f"{file} cannot be written: {error.strerror}; give a file in a folder of yours") from error
    finally:
        part.unlink(missing_ok=True)
    return count


def _records(api: Api, tenant: str) -> Iterator[Any]:
    token = ""
    while True:
        page = api.get(f"/api/requests?page_size={PAGE}&tenant={quote(tenant, safe='')}&page_token={token}")
        yield from page["requests"]
        token = page["next_page_token"]
        if not token:
            return
