"""The cognitive map in a file: written aside, brought to the disk, renamed; never half written."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import orjson
import structlog

from hivemind.servers.orchestrator.cognitive_map import CognitiveMap, LedgerPart
from hivemind.servers.orchestrator.store_redis import stale

_log = structlog.get_logger()

VERSION: Final = 1


class MapFile:
    """Implements ports.MapFile. Blocking: meant for a thread."""

    def __init__(self, path: Path, *, half_life_s: float) -> None:
        self._path, self._half_life_s = path, half_life_s

    def load(self) -> LedgerPart | None:
        """See ports.MapFile. A file that cannot be read is none: the ledger tells the same again."""
        try:
            data = orjson.loads(self._path.read_bytes())
            if data["version"] != VERSION:
                raise ValueError(f"version {data['version']!r}")
            return LedgerPart.from_json(data["ledger"], self._half_life_s)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            _log.warning("map_file_unusable", file=self._path.name, error=f"{type(error).__name__}: {error}")
            return None

    def save(self, found: CognitiveMap, part: LedgerPart, *, token: int) -> None:
        """See ports.MapFile."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        data = {"version": VERSION, "fencing_token": token, "map": found.to_json(), "ledger": part.to_json()}
        aside = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        with self._locked():
            newest = self._token()
            if token < newest:
                raise stale(token, newest)
            try:
                with aside.open("wb") as file:
                    file.write(orjson.dumps(data))
                    file.flush()
                    os.fsync(file.fileno())
                aside.replace(self._path)
            finally:
                aside.unlink(missing_ok=True)
        self._sync_folder()

    def _token(self) -> int:
        """The token of the file that is there; 0 where none can be read."""
        try:
            return int(orjson.loads(self._path.read_bytes())["fencing_token"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self._path.with_name(f".{self._path.name}.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _sync_folder(self) -> None:
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
