"""The registry through the real Envoy: the first commands of an operator, verbatim, and the way of an adapter."""

import json
import shutil
from pathlib import Path

import gguf
import httpx
import pytest

from hivemind.servers.adapter_registry.base_model import read_gguf
from hivemind.servers.common.courier import WHEEL_SHA256, wheel_file
from hivemind.training.bootstrap import register
from tests.support.mesh import RunningMesh, running_mesh
from tests.support.peft import write_adapter
from tests.support.waiting import until


def test_the_seed_commands_answer(client: httpx.Client) -> None:
    adapters = client.get("/api/adapters")
    state = client.get("/api/adapters/state")
    promoted = client.post("/api/adapters/promote/implementer")

    assert adapters.status_code == 200, adapters.text
    assert state.status_code == 200, state.text
    assert "implementer" in [r["role"] for r in state.json()["roles"]]
    assert promoted.status_code == 400, promoted.text
    info = promoted.json()["details"][0]
    assert info["reason"] == "EVIDENCE_MISSING"
    assert info["metadata"]["verdict"] == "HOLD"


@pytest.fixture
def made(mesh: RunningMesh) -> str:
    """A directory of an adapter of the courier, as an operator would hand it in."""
    base = read_gguf("courier", wheel_file(), sha256=WHEEL_SHA256)
    write_adapter(mesh.home / "incoming" / "first", base.shapes, seed=21)
    return "incoming/first"


def test_an_adapter_is_registered_tried_promoted_and_rolled_back(
    client: httpx.Client, mesh: RunningMesh, made: str, tmp_path: Path
) -> None:
    adapter = client.post("/api/adapters", json={"role": "implementer", "path": made}).json()
    name = adapter["id"]
    traffic = client.post("/api/adapters/traffic/implementer", json={"adapter_id": name, "traffic": 0.05}).json()
    outcomes = [
        {"request_id": f"pair-{i}", "role": "implementer", "adapter_id": name, "score": float(i % 4 > 0),
         "latency": "0.3s", "cost_micros": "0"} for i in range(240)
    ]  # fmt: skip
    recorded = client.post("/api/adapters/outcomes", json={"outcomes": outcomes}).json()
    preview = client.get(f"/api/adapters/preview/implementer?adapter_id={name}").json()
    wish = {k: preview[k] for k in ("adapter_id", "preview_hash", "expected_champion")}
    shown = mesh.command("adapters", "preview", "implementer")
    state = client.post("/api/adapters/promote/implementer", json=wish)
    again = client.post("/api/adapters/promote/implementer", json=wish)
    drawn = mesh.command("adapters", "history", "implementer")
    rolled = mesh.command("adapters", "rollback", "implementer", "--reason", "a test", "--json")

    assert adapter["base_model"] == "courier"
    assert traffic["challenges"][0]["traffic"] == 0.05
    assert recorded == {"recorded": 240, "duplicates": 0}
    assert preview["verdict"] == "PROMOTE", preview
    assert "180 of 240 pairs" in shown.stdout
    assert state.json()["champion"] == name
    assert (again.status_code, again.json()["details"][0]["reason"]) == (409, "CHAMPION_CHANGED")
    assert "promoted" in drawn.stdout
    assert "pairs judged" in drawn.stdout
    assert json.loads(rolled.stdout)["champion"] == ""
    events = client.get("/api/adapters/events").json()["events"]
    assert [e["kind"] for e in events[:4]] == ["ROLLED_BACK", "PROMOTED", "TRAFFIC_CHANGED", "REGISTERED"]


def test_a_bad_directory_is_a_400_that_names_file_and_problem(
    client: httpx.Client, mesh: RunningMesh, made: str
) -> None:
    (mesh.home / made / "adapter_config.json").write_text("{}")

    answer = client.post("/api/adapters", json={"role": "implementer", "path": made})

    assert answer.status_code == 400
    assert answer.json()["details"][0]["metadata"]["file"] == "adapter_config.json"
    refused = mesh.command("adapters", "register", "implementer", "../nowhere", check=False)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "without .." in refused.stderr


def test_a_version_is_exported_as_a_folder_and_as_one_file_for_llama_cpp(
    client: httpx.Client, mesh: RunningMesh, made: str, tmp_path: Path
) -> None:
    name = client.post("/api/adapters", json={"role": "implementer", "path": made}).json()["id"]
    mesh.command("adapters", "export", name, "--out", str(tmp_path / "peft"))
    mesh.command("adapters", "export", name, "--out", str(tmp_path / "one.gguf"), "--gguf")
    again = mesh.command("adapters", "export", name, "--out", str(tmp_path / "peft"), check=False)

    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    assert (tmp_path / "peft" / "adapter_model.safetensors").stat().st_size > 0
    fields = gguf.GGUFReader(tmp_path / "one.gguf").fields
    assert fields["adapter.type"].contents() == "lora"
    assert again.returncode == 1
    assert "is there already" in again.stderr


def test_a_running_mesh_serves_what_the_bootstrap_hands_in_where_nobody_is_champion(tmp_path: Path) -> None:
    base = read_gguf("courier", wheel_file(), sha256=WHEEL_SHA256)
    with running_mesh(tmp_path / "home") as mesh:
        target = mesh.home / "adapters" / "foundational" / "champion_v1"
        write_adapter(target, base.shapes, seed=31)
        first = register(mesh.home, mesh.environment)
        with mesh.client() as client:
            held = until(lambda: served_by(client) == "implementer-v000001", within_s=60, what="it serves the role")
            events = client.get("/api/adapters/events").json()["events"]
            shutil.rmtree(target)
            write_adapter(target, base.shapes, seed=32)
            second = register(mesh.home, mesh.environment)
            state = client.get("/api/adapters/state").json()["roles"][0]

    assert held
    assert first == "registered with the running mesh as implementer-v000001, which serves implementer now"
    assert [e["kind"] for e in events] == ["PROMOTED", "REGISTERED"]
    assert second == "registered with the running mesh as implementer-v000002; implementer-v000001 stays champion"
    assert state["champion"] == "implementer-v000001"


def served_by(client: httpx.Client) -> str:
    body = {"model": "courier", "max_tokens": 4, "messages": [{"role": "user", "content": "Hello"}]}
    return str(client.post("/v1/chat/completions", json=body).json()["hivemind"]["adapter"])
