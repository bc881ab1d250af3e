"""Takes a changed hivemind.toml over while a server runs. A broken one is reported once, and the old one goes on."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import structlog

from hivemind.servers.common.catalogue import Catalogue, CatalogueError, environment, load_catalogue

_log = structlog.get_logger()


class CatalogueWatch:
    """Looks at the file's time and size every `poll_s` seconds."""

    def __init__(self, path: Path, *, poll_s: float, on_change: Callable[[Catalogue], None]) -> None:
        self._path, self._poll_s, self._on_change = path, poll_s, on_change
        self._seen = _stamp(path)

    async def run(self) -> None:
        """Watches for ever."""
        while True:
            await asyncio.sleep(self._poll_s)
            self.look()

    def look(self) -> None:
        """Loads the file if it changed since the last look."""
        stamp = _stamp(self._path)
        if stamp == self._seen:
            return
        self._seen = stamp
        try:
            catalogue = load_catalogue(self._path, environment())
        except CatalogueError as error:
            _log.error("config_refused", detail=str(error), note="the configuration before goes on")
            return
        self._on_change(catalogue)
        _log.info("config_loaded", models=sorted(catalogue.models))


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
