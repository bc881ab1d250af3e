"""The directories of stored versions: `<adapters>/<role>/v000001`. Written aside, fsynced, renamed; never changed."""

import errno
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from hivemind.servers.adapter_registry.validation import META
from hivemind.servers.common.errors import MeshError

_ASIDE: Final = ".incoming-"
_ABANDONED_S: Final = 3600.0
_CHUNK: Final = 1 << 20
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class Versions:
    """The adapters' folder. All methods block on the disk; STORE_FULL or STORE_UNAVAILABLE if it fails."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def copy(self, source: Path, names: Sequence[str]) -> Path:
        """Copies some files of a directory to a folder that nobody looks at; `publish` or `discard` it."""
        with _disk_errors():
            self._root.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(prefix=_ASIDE, dir=self._root))
            try:
                for name in names:
                    _copy(source / name, folder / name)
            except BaseException:
                self.discard(folder)
                raise
            return folder

    def discard(self, folder: Path) -> None:
        """Removes a copy; nothing where it was published."""
        shutil.rmtree(folder, ignore_errors=True)

    def publish(self, folder: Path, role: str, number: int, meta: Mapping[str, Any]) -> str:
        """Gives a copy its final place; the path relative to the adapters' folder. Never replaces a version."""
        with _disk_errors():
            _write(folder / META, (json.dumps(meta, indent=1, sort_keys=True) + "\n").encode())
            folder.chmod(0o755)
            _sync(folder)
            target = self._root / role / f"v{number:06d}"
            target.parent.mkdir(exist_ok=True)
            folder.rename(target)  # fails where a version of this number has files
            _sync(target.parent)
            _sync(self._root)
        return f"{role}/{target.name}"

    def withdraw(self, path: str) -> None:
        """Takes back a version that was published and could not be registered."""
        shutil.rmtree(self._root / path, ignore_errors=True)

    def highest(self, role: str) -> int:
        """The highest number that a directory of the role has; 0 for none."""
        names = [p.name[1:] for p in (self._root / role).glob("v*") if p.name[1:].isdecimal()]
        return max(map(int, names), default=0)

    def directory(self, path: str) -> Path:
        """Where a version lies."""
        return self._root / path

    def sweep(self) -> None:
        """Removes copies that a killed process left behind an hour ago or more."""
        for folder in self._root.glob(f"{_ASIDE}*"):
            try:
                old = time.time() - folder.stat().st_mtime > _ABANDONED_S
            except OSError:
                continue
            if old:
                shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise MeshError("STORE_FULL", "the disk of the adapters' folder is full; free some and retry") from error
        text = f"the adapters' folder cannot be written ({error.strerror}); look at its disk and rights"
        raise MeshError("STORE_UNAVAILABLE", text, retry_after_s=5.0) from error


def _copy(source: Path, target: Path) -> None:
    """A link that has come in the meantime is not followed."""
    with (
        os.fdopen(os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as reading,
        target.open("xb") as writing,
    ):
        shutil.copyfileobj(reading, writing, _CHUNK)
        writing.flush()
        os.fsync(writing.fileno())


def _write(target: Path, data: bytes) -> None:
    with target.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
