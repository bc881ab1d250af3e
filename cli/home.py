"""The state folder of a mesh: where it is, who uses it, and which version its layout has."""

import errno
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

LAYOUT: Final = 1
"""Grows when the layout of the state folder changes; older folders are migrated, newer ones refused."""
DEFAULT_PORT: Final = 8080


_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO})


class CommandError(Exception):
    """A command cannot do its work; the text is one sentence with the cure."""


def checkout() -> Path | None:
    """The root of the checkout that this code runs from, None if it is installed elsewhere."""
    root = Path(__file__).resolve().parent.parent
    return root if (root / "proto" / "hivemind").is_dir() else None


def home_folder(environment: Mapping[str, str]) -> Path:
    """HIVEMIND_HOME, else .hivemind in the checkout, else the user's data folder."""
    named = environment.get("HIVEMIND_HOME")
    if named:
        return Path(named).expanduser().resolve()
    root = checkout()
    if root is not None:
        return root / ".hivemind"
    data = environment.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(data) / "hivemind"


def data_folder(name: str, environment: Mapping[str, str]) -> Path:
    """The folder `adapters` or `datasets`: HIVEMIND_ADAPTERS or HIVEMIND_DATASETS, else in HIVEMIND_HOME where that is
    set, else the checkout's own, else in the user's data folder."""
    named = environment.get(f"HIVEMIND_{name.upper()}")
    if named:
        return Path(named).expanduser().resolve()
    root = None if environment.get("HIVEMIND_HOME") else checkout()
    return (root or home_folder(environment)) / name


def data_folders(environment: Mapping[str, str]) -> dict[str, str]:
    """Both folders, as variables for the processes of a mesh."""
    return {f"HIVEMIND_{n.upper()}": str(data_folder(n, environment)) for n in ("adapters", "datasets")}


def config_file(environment: Mapping[str, str]) -> Path:
    """HIVEMIND_CONFIG, else hivemind.toml in the folder at hand."""
    return Path(environment.get("HIVEMIND_CONFIG") or "hivemind.toml").expanduser().resolve()


def cannot_write(error: OSError, home: Path) -> CommandError:
    """The sentence for a file that could not be written; raises what was not about room for it."""
    if error.errno not in _NO_ROOM:
        raise error
    where = error.filename or home
    return CommandError(f"{where} cannot be written ({error.strerror}); free some disk or set HIVEMIND_HOME elsewhere")


@contextmanager
def locked(home: Path) -> Iterator[None]:
    """Holds the state folder for one mesh. CommandError if another has it or it cannot be written."""
    try:
        for name in ("run", "logs", "cache", "redis"):
            (home / name).mkdir(parents=True, exist_ok=True)
        file = os.open(home / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise CommandError(
            f"{home} cannot be used ({error.strerror}); set HIVEMIND_HOME to a folder of yours"
        ) from error
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(file, 32, 0).decode(errors="replace").strip() or "unknown"
            cure = "end it with `hivemind down`, or set HIVEMIND_HOME to another folder"
            raise CommandError(f"a mesh with pid {owner} already runs on {home}; {cure}") from None
        os.ftruncate(file, 0)
        os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
        _check_layout(home)
        yield
    finally:
        os.close(file)


def write_json(path: Path, data: Any) -> None:
    """Writes a file so that a reader sees the old one or the new one, never a part."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(json.dumps(data, indent=1) + "\n")
    aside.replace(path)


def read_json(path: Path) -> Any:
    """What the file holds, None if it is absent or broken."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def mesh_address(home: Path, environment: Mapping[str, str]) -> tuple[str, int]:
    """Host and port of the mesh of this state folder, or where one would be."""
    mesh = read_json(home / "run" / "mesh.json")
    if isinstance(mesh, dict):
        return str(mesh["host"]), int(mesh["port"])
    return environment.get("HIVEMIND_HOST") or "127.0.0.1", int(environment.get("HIVEMIND_PORT") or DEFAULT_PORT)


def _check_layout(home: Path) -> None:
    """Stamps a new folder. Layout 1 is the first, so there is nothing to migrate from yet."""
    file = home / "version"
    try:
        text = file.read_text().strip()
    except FileNotFoundError:
        file.write_text(f"{LAYOUT}\n")
        return
    if not text.isdecimal():
        raise CommandError(
            f"{file} is damaged; restore it (this version writes {LAYOUT}) or take another HIVEMIND_HOME"
        )
    if int(text) > LAYOUT:
        message = f"{home} was written by a newer hivemind (layout {text}; this one knows {LAYOUT})"
        raise CommandError(f"{message}; update hivemind or take another HIVEMIND_HOME")
