"""A real mesh for tests: `hivemind up --detach` with a scripted model server behind it."""

import base64
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.support.waiting import until

ROOT = Path(__file__).resolve().parents[2]
HIVEMIND = (sys.executable, "-m", "hivemind.cli")


@dataclass(frozen=True)
class Upstream:
    """The scripted model server as a process."""

    port: int
    tls_port: int

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def seen(self) -> list[dict[str, Any]]:
        """The requests it saw, with `body` as bytes."""
        found = httpx.get(f"http://127.0.0.1:{self.port}/seen").json()
        return [{**s, "body": base64.b64decode(s["body"])} for s in found]

    def forget(self) -> None:
        httpx.request("DELETE", f"http://127.0.0.1:{self.port}/seen")


def courier_and_master(upstream: Upstream, *, courier: str = "ok") -> str:
    """A catalogue of the two aliases; `courier` is its script. Only master has a price."""
    return (
        f'[models.courier]\nendpoints = [{{ base_url = "{upstream.base_url}", model = "{courier}" }}]\n'
        f'[models.master]\nendpoints = [{{ base_url = "{upstream.base_url}", model = "ok" }}]\n'
        "input_price = 2.5\noutput_price = 10.0\n"
    )


@contextmanager
def scripted_upstream() -> Iterator[Upstream]:
    command = [sys.executable, "-m", "tests.support.scripted_upstream"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        try:
            yield Upstream(*map(int, process.stdout.readline().split()))
        finally:
            process.terminate()


@dataclass(frozen=True)
class RunningMesh:
    """A mesh that answers. Processes are found as scripts would: by command line and HIVEMIND_HOME."""

    home: Path
    environment: Mapping[str, str]

    @property
    def plan(self) -> dict[str, Any]:
        plan: dict[str, Any] = json.loads((self.home / "run" / "mesh.json").read_text())
        return plan

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.plan['port']}"

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.plan['port']}"

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.base_url, timeout=70, **options)

    def command(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*HIVEMIND, *arguments],
            env=dict(self.environment),
            capture_output=True,
            text=True,
            check=check,
            timeout=120,
        )

    def processes(self, needle: str) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                if needle in " ".join(process.cmdline()) and process.environ().get("HIVEMIND_HOME") == str(self.home):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def redis(self) -> psutil.Process:
        """Redis overwrites its command line and environment, so it is found by its port."""
        port = self.plan["redis_url"].rpartition(":")[2].partition("/")[0]
        found = [p for p in psutil.process_iter() if p.name() == "redis-server" and f":{port}" in " ".join(p.cmdline())]
        assert len(found) == 1, found
        return found[0]

    def server(self, name: str) -> list[psutil.Process]:
        return self.processes(f"hivemind.servers.{name}")

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        for process in self.server(name):
            os.kill(process.pid, number)

    def wait_ready(self, within_s: float = 20.0) -> None:
        def ready() -> bool:
            ports = [p["metrics"] for p in self.plan["processes"].values()]
            answers = [httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=2).status_code for port in ports]
            return all(a == 200 for a in answers) and httpx.get(f"{self.base_url}/readyz", timeout=2).status_code == 200

        until(ready, within_s=within_s, what="the mesh is ready again")


@contextmanager
def running_mesh(
    home: Path, config: str = "", *, replicas: str = "", environment: Mapping[str, str] | None = None
) -> Iterator[RunningMesh]:
    home.mkdir(parents=True, exist_ok=True)
    file = home / "hivemind.toml"
    file.write_text(config)
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("HIVEMIND_", "OPENAI_", "DEEPSEEK_", "REDIS_"))}
    settings = {
        "HIVEMIND_HOME": str(home), "HIVEMIND_CONFIG": str(file), "HIVEMIND_PORT": "0",
        "HIVEMIND_LEARN": "false",  # else what one test teaches takes a core from those after it
    }  # fmt: skip
    mesh = RunningMesh(home, {**clean, **settings, **(environment or {})})
    arguments = ["--replicas", replicas] if replicas else []
    started = mesh.command("up", "--detach", *arguments, check=False)
    assert started.returncode == 0, started.stdout + started.stderr
    try:
        yield mesh
    finally:
        mesh.command("down", check=False)
