"""Training over REST through Envoy: an order, its progress, and the adapter that comes of it."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from hivemind.training.base_model import prepare_base
from hivemind.training.sft_config import SftConfig
from tests.support.invented_facts import write_facts
from tests.support.mesh import ROOT, RunningMesh

CONVERTED = ROOT / ".cache" / "training-tests"
"""Where the tests of training keep the courier's weights: converting them takes half a minute."""


@pytest.fixture(scope="module")
def facts(mesh: RunningMesh) -> str:
    """A file to learn from inside the state folder, relative to it."""
    prepare_base(SftConfig(home=str(CONVERTED)), {})
    (mesh.home / "cache").mkdir(exist_ok=True)
    if not (mesh.home / "cache" / "base").exists():  # a job of another test may have converted them already
        (mesh.home / "cache" / "base").symlink_to(CONVERTED / "cache" / "base")
    folder = mesh.home / "incoming"
    folder.mkdir(exist_ok=True)
    taught, _ = write_facts(folder, 4, seed=1)
    return str(Path(taught).relative_to(mesh.home))


def watched(client: httpx.Client, job_id: str) -> list[dict[str, Any]]:
    with client.stream("GET", f"/api/train/{job_id}:watch", timeout=60) as answer:
        return [json.loads(line) for line in answer.iter_lines() if line.strip()]


@pytest.mark.timeout(600)
def test_an_order_becomes_an_adapter_of_its_role(mesh: RunningMesh, client: httpx.Client, facts: str) -> None:
    mesh.wait_ready()
    order = {
        "role": "implementer", "data": {"paths": [facts]}, "idempotency_key": "mesh-test",
        "recipe": {"max_steps": 6, "batch_size": 4, "rank": 8, "seed": 3},
    }  # fmt: skip
    job = client.post("/api/train", json=order, timeout=60).json()["job"]

    assert job["state"] == "QUEUED"
    messages = watched(client, job["id"])
    final = messages[-1]["final"]
    assert (final["state"], final["progress"]["step"], final["attempts"]) == ("SUCCEEDED", 6, 1), final
    assert any(m["progress"]["step"] > 0 and m["progress"]["tokens_per_second"] > 0 for m in messages[:-1])
    assert final["evaluation"]["candidate_heldout_loss"] < final["evaluation"]["base_heldout_loss"]
    adapters = client.get("/api/adapters").json()["adapters"]
    assert {a["id"]: a["state"] for a in adapters}[final["adapter_id"]] == "CHALLENGER"
    calm = {"adapter_id": final["adapter_id"], "traffic": 0}
    assert client.post("/api/adapters/traffic/implementer", json=calm).status_code == 200
    assert client.post("/api/train", json=order, timeout=60).json()["job"]["id"] == job["id"]
    assert job["id"] in [j["id"] for j in client.get("/api/train").json()["jobs"]]


def test_a_bad_order_is_a_400_that_names_the_field(client: httpx.Client) -> None:
    for body, field in (
        ({"recipe": {"rank": 7}}, "recipe.rank"),
        ({"recipe": {"learning_rate": -1}}, "recipe.learning_rate"),
        ({"base_model": "no-such-model", "data": {"mixture": "default"}}, "base_model"),
        ({"data": {"paths": ["../secret.jsonl"]}}, "data.paths[0]"),
    ):
        answer = client.post("/api/train", json=body, timeout=60)
        violations = answer.json()["details"][1]["field_violations"]
        assert (answer.status_code, violations[0]["field"]) == (400, field), answer.text


def test_a_watch_of_no_job_is_a_404_or_ends_with_an_error_line(client: httpx.Client) -> None:
    answer = client.get("/api/train/no-such-job:watch")

    last = json.loads(answer.text.strip().splitlines()[-1])
    assert "NOT_FOUND_RESOURCE" in json.dumps(last)
