"""Which files a caller may name as training data: those inside the state folder, reached without links out of it."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from typing import Final

from hivemind.servers.common.errors import invalid_field

MAX_ENTRIES: Final = 100_000


def located(paths: Sequence[str], root: Path) -> list[Path]:
    """The paths as absolute ones. Relative ones lie in `root`, absolute ones must.

    INVALID_FIELD names the field: outside, with `..`, absent, a link on the way, or a folder with a link out of it.
    """
    root = root.resolve()
    return [_reachable(text, f"data.paths[{i}]", root) for i, text in enumerate(paths)]


def _reachable(text: str, field: str, root: Path) -> Path:
    try:
        return _located(text, field, root)
    except (OSError, RuntimeError) as error:  # too long, not to be read, links in a circle
        raise invalid_field(field, "cannot be looked at; name another file or folder inside HIVEMIND_HOME") from error


def _located(text: str, field: str, root: Path) -> Path:
    pure = PurePath(text)
    if not text or ".." in pure.parts:
        raise invalid_field(field, "must be a file or folder inside HIVEMIND_HOME, without ..")
    if pure.is_absolute() and not pure.is_relative_to(root):
        raise invalid_field(field, "is outside HIVEMIND_HOME; copy the data into it")
    path = root / pure
    relative = path.relative_to(root)
    if any((root / part).is_symlink() for part in (relative, *relative.parents) if part.parts):
        raise invalid_field(field, "leads over a symbolic link; name the file itself")
    if not (path.is_file() or path.is_dir()):
        raise invalid_field(field, "there is no such file or folder inside HIVEMIND_HOME")
    for link in _links(path):
        if not link.resolve().is_relative_to(root):
            raise invalid_field(field, f"{link.relative_to(root)} in it is a symbolic link out of HIVEMIND_HOME")
    return path


def _links(path: Path) -> Iterator[Path]:
    """The symbolic links below a folder, looked for among its first entries."""
    seen = 0
    for folder, folders, files in os.walk(path):
        for name in (*folders, *files):
            seen += 1
            if seen > MAX_ENTRIES:
                return
            entry = Path(folder, name)
            if entry.is_symlink():
                yield entry
