"""A real mesh for measurements: `hivemind up --detach` in a folder of its own, on free ports."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

_FOREIGN = ("HIVEMIND_", "OPENAI_", "DEEPSEEK_", "REDIS_")


@dataclass(frozen=True, slots=True)
class Mesh:
    """A mesh that answers. `client` asks its REST surface."""

    home: Path
    client: httpx.Client
    plan: Mapping[str, Any]

    @property
    def port(self) -> int:
        """Envoy's port."""
        return int(self.plan["port"])

    def get(self, path: str, **query: Any) -> dict[str, Any]:
        """A GET that answers JSON; httpx.HTTPStatusError with a status above 399."""
        return _told(self.client.get(path, params=query))

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """A POST that answers JSON; httpx.HTTPStatusError with a status above 399."""
        return _told(self.client.post(path, json=body))

    def until(self, what: str, found: Callable[[], bool], *, within_s: float) -> None:
        """Waits for a condition; TimeoutError names it."""
        end = time.monotonic() + within_s
        while not found():
            if time.monotonic() > end:
                raise TimeoutError(f"not within {within_s:g} s: {what}")
            time.sleep(0.2)


@contextmanager
def running_mesh(home: Path, config: str, settings: Mapping[str, str]) -> Iterator[Mesh]:
    """A mesh of its own state folder with this hivemind.toml and these settings (HIVEMIND_*), ended afterwards."""
    file = home / "hivemind.toml"
    file.write_text(config)
    clean = {k: v for k, v in os.environ.items() if not k.startswith(_FOREIGN)}
    own = {"HIVEMIND_HOME": str(home), "HIVEMIND_PORT": "0", "HIVEMIND_CONFIG": str(file)}
    command = [sys.executable, "-m", "hivemind.cli"]
    environment = {**clean, **own, **settings}
    started = subprocess.run([*command, "up", "--detach"], env=environment, check=False, capture_output=True, text=True)
    if started.returncode:
        sys.exit(f"the mesh did not start: {started.stdout}{started.stderr}")
    try:
        plan = json.loads((home / "run" / "mesh.json").read_text())
        with httpx.Client(base_url=f"http://127.0.0.1:{plan['port']}", timeout=60) as client:
            yield Mesh(home, client, plan)
    finally:
        subprocess.run([*command, "down"], env=environment, check=False, stdout=subprocess.DEVNULL)


def _told(answer: httpx.Response) -> dict[str, Any]:
    answer.raise_for_status()
    found: dict[str, Any] = answer.json()
    return found
