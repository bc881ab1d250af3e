"""`hivemind up`: FAULTS 45 to 48, and what an operator relies on. Each test has its own state folder."""

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest

from tests.support.mesh import HIVEMIND, RunningMesh, Upstream, running_mesh
from tests.support.waiting import until

REMOTE = {"HIVEMIND_COURIER": "http://127.0.0.1:9/v1"}


def environment(home: Path, **extra: str) -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("HIVEMIND_", "REDIS_"))}
    return {
        **clean,
        "HIVEMIND_HOME": str(home),
        "HIVEMIND_PORT": "0",
        "HIVEMIND_CONFIG": str(home / "hivemind.toml"),
        **extra,
    }


def left_running(home: Path) -> list[str]:
    """Processes of this state folder, by environment or by what they have open there."""
    found = []
    for process in psutil.process_iter():
        try:
            mine = process.environ().get("HIVEMIND_HOME") == str(home) or str(home) in process.cwd()
            if mine and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return found


def up(home: Path, **extra: str) -> subprocess.CompletedProcess[str]:
    command = [*HIVEMIND, "up"]
    return subprocess.run(
        command, env=environment(home, **extra), capture_output=True, text=True, check=False, timeout=60
    )


def test_a_taken_port_is_one_sentence_with_the_cure(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = up(tmp_path, HIVEMIND_PORT=port)

    assert result.returncode == 1
    assert port in result.stderr
    assert "HIVEMIND_PORT" in result.stderr
    assert "Traceback" not in result.stderr
    assert left_running(tmp_path) == []


@pytest.mark.parametrize("file_limit", [0, 4096])
def test_a_full_disk_is_one_sentence_with_the_cure(tmp_path: Path, file_limit: int) -> None:
    def fill() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    result = subprocess.run(
        [*HIVEMIND, "up"], env=environment(tmp_path, PYTHONDONTWRITEBYTECODE="1"), capture_output=True, text=True,
        check=False, timeout=60, preexec_fn=fill,
    )  # fmt: skip

    assert result.returncode == 1
    assert "free some disk" in result.stderr
    assert "Traceback" not in result.stderr
    assert left_running(tmp_path) == []


@pytest.mark.parametrize(
    ("variable", "value", "word"),
    [
        ("HIVEMIND_ENVOY", "/nonexistent/envoy", "envoy"),
        ("HIVEMIND_COURIER", "/nonexistent/model.gguf", "courier"),
        ("HIVEMIND_REPLICAS", "router=many", "replicas"),
    ],
)
def test_what_is_missing_or_wrong_is_named(tmp_path: Path, variable: str, value: str, word: str) -> None:
    result = up(tmp_path, **{variable: value})

    assert result.returncode == 1
    assert word in result.stderr.lower()
    assert "Traceback" not in result.stderr
    assert left_running(tmp_path) == []


def test_a_state_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = up(tmp_path / "file" / "home")

    assert result.returncode == 1
    assert "HIVEMIND_HOME" in result.stderr


def test_a_broken_config_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "hivemind.toml").write_text('[models.master]\nendpoints = [{ base_url = "nonsense", model = "m" }]\n')
    result = up(tmp_path)

    assert result.returncode == 1
    assert "line 2" in result.stderr
    assert "base_url" in result.stderr
    assert left_running(tmp_path) == []


def test_a_newer_state_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "version").write_text("99\n")
    result = up(tmp_path)

    assert result.returncode == 1
    assert "newer" in result.stderr


def test_a_second_mesh_on_one_state_folder_is_refused(mesh: RunningMesh) -> None:
    owner = json.loads((mesh.home / "run" / "up.json").read_text())["pid"]
    result = mesh.command("up", check=False)

    assert result.returncode == 1
    assert str(owner) in result.stderr
    assert httpx.get(f"{mesh.base_url}/readyz").status_code == 200


@pytest.mark.parametrize("moment_s", [0.0, 0.3, 0.8, 1.5, 2.5])
def test_ctrl_c_at_any_moment_ends_everything_and_the_next_start_works(tmp_path: Path, moment_s: float) -> None:
    command = [*HIVEMIND, "up"]
    with subprocess.Popen(
        command, env=environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        deadline = time.monotonic() + moment_s
        until(lambda: time.monotonic() >= deadline, what="the moment")
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        process.wait(timeout=10)
        assert time.monotonic() - began < 10

    assert left_running(tmp_path) == []
    if moment_s == 1.5:
        with running_mesh(tmp_path) as mesh:
            assert httpx.get(f"{mesh.base_url}/readyz").status_code == 200


def test_kill_9_of_the_supervisor_leaves_nothing_running(tmp_path: Path) -> None:
    with running_mesh(tmp_path) as mesh:
        redis = mesh.redis()
        os.kill(json.loads((tmp_path / "run" / "up.json").read_text())["pid"], signal.SIGKILL)

        until(lambda: not left_running(tmp_path) and not redis.is_running(), within_s=15, what="all children end")
        assert mesh.command("down", check=False).returncode == 1

    with running_mesh(tmp_path) as again:
        assert httpx.get(f"{again.base_url}/readyz").status_code == 200


def test_a_changed_config_is_taken_over_and_a_broken_one_is_not(tmp_path: Path, upstream: Upstream) -> None:
    table = '[models.{0}]\nendpoints = [{{ base_url = "{1}", model = "ok" }}]\n'
    with running_mesh(
        tmp_path, environment=REMOTE | {"HIVEMIND_COURIER": upstream.base_url, "HIVEMIND_COURIER_MODEL": "ok"}
    ) as mesh:
        file = tmp_path / "hivemind.toml"

        def names() -> set[str]:
            return {m["id"] for m in httpx.get(f"{mesh.base_url}/v1/models").json()["data"]}

        file.write_text(table.format("extra", upstream.base_url))
        until(lambda: "extra" in names(), what="the new alias")
        file.write_text(table.format("extra", upstream.base_url) + "\n[models.broken]\nprice = 3\n")
        log = until(lambda: "config_refused" in (tmp_path / "logs" / "router.log").read_text(), what="the refusal")

        assert log
        refusal = next(
            ln for ln in (tmp_path / "logs" / "router.log").read_text().splitlines() if "config_refused" in ln
        )
        assert "line 5" in refusal
        assert "models.broken.price" in refusal
        assert names() == {"auto", "courier", "extra"}


def test_prometheus_targets_name_every_process_and_each_answers(mesh: RunningMesh) -> None:
    mesh.wait_ready()
    targets = json.loads((mesh.home / "run" / "prometheus_targets.json").read_text())

    assert {t["labels"]["process"] for t in targets} == {*mesh.plan["processes"], "envoy"}
    for target in targets:
        path = target["labels"].get("__metrics_path__", "/metrics")
        assert httpx.get(f"http://{target['targets'][0]}{path}").status_code == 200


def test_doctor_needs_nothing_running_and_says_what_is_missing(tmp_path: Path) -> None:
    result = subprocess.run(
        [*HIVEMIND, "doctor", "--json"],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    parts = {p["name"]: p for p in json.loads(result.stdout)}

    assert parts["envoy"]["present"]
    assert parts["redis"]["present"]
    assert not parts["master"]["present"]
    assert "OPENAI_API_KEY" in parts["master"]["get"]


def test_help_imports_nothing_heavy() -> None:
    heavy = "('grpc', 'pydantic', 'aiohttp', 'rich.console')"
    code = f"import sys; from hivemind.cli import app; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert result.stdout.strip() == "[]"


def test_a_key_is_asked_of_every_call_but_health(tmp_path: Path, upstream: Upstream) -> None:
    settings = {"HIVEMIND_COURIER": upstream.base_url, "HIVEMIND_COURIER_MODEL": "ok", "HIVEMIND_API_KEY": "secret-key"}
    with running_mesh(tmp_path, environment=settings) as mesh:
        body = {"messages": [{"role": "user", "content": "hi"}]}
        with mesh.client() as client:
            assert client.get("/healthz").status_code == 200
            assert client.get("/readyz").status_code == 200
            assert client.post("/v1/chat/completions", json=body).json()["error"]["reason"] == "KEY_MISSING"
            assert client.get("/api/models").status_code == 401
            assert client.get("/api/models", headers={"authorization": "Bearer wrong"}).status_code == 401
        with mesh.client(headers={"authorization": "Bearer secret-key"}) as client:
            assert client.post("/v1/chat/completions", json=body).status_code == 200
            assert client.post("/api/config/governor", json={"enabled": True}).status_code == 200
        assert mesh.command("models", "--json").returncode == 0
        logs = "".join(f.read_text(errors="replace") for f in (tmp_path / "logs").glob("*.log"))
        assert "secret-key" not in logs
