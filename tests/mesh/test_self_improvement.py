"""The loop has answers refined where that saves most: traffic of a dear domain, an Oracle, a map that learns of it."""

import json
from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import pytest

from hivemind.v1 import router_pb2, router_pb2_grpc
from tests.support.arbiter_rig import told
from tests.support.mesh import RunningMesh, courier_and_master, running_mesh, scripted_upstream
from tests.support.waiting import until

QUIET = {"HIVEMIND_NOMINATE": "0", "HIVEMIND_EXPLORE": "0", "HIVEMIND_CYCLE_EVERY_S": "3600"}


@pytest.fixture(scope="module")
def learning(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningMesh]:
    with scripted_upstream() as upstream:
        oracle = f'[models.oracle]\nendpoints = [{{ base_url = "{upstream.base_url}", model = "o_good" }}]\n'
        prices = "context_tokens = 128000\ninput_price = 2.5\noutput_price = 10.0\n"
        config = courier_and_master(upstream) + oracle + prices + "[tenants.private]\ntraining = false\n"
        with running_mesh(tmp_path_factory.mktemp("learning"), config, environment=QUIET) as mesh:
            yield mesh


def ask(client: httpx.Client, text: str, domain: str, tenant: str = "default") -> str:
    messages = [{"role": "user", "content": text}]
    body = {"messages": messages, "model": "courier", "hints": {"domain": domain}, "tenant": tenant}
    answer = client.post("/api/complete", json=body)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["request_id"])


def cycle(client: httpx.Client, *steps: str) -> dict[str, dict[str, Any]]:
    answer = client.post("/api/orchestrator:cycle", json={"steps": steps})
    assert answer.status_code == 200, answer.text
    return {s["name"]: s for s in answer.json()["steps"]}


def listed(client: httpx.Client) -> set[str]:
    """The requests that the loop can see; one may be found by its id a little before."""
    found = client.get("/api/requests", params={"page_size": 100}).json()
    return {r["request_id"] for r in found["requests"]}


def platinum(mesh: RunningMesh) -> list[dict[str, Any]]:
    files = (mesh.home / "datasets").glob("training_metadata*.jsonl")
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def test_the_dearest_doubtful_domain_is_refined_and_the_map_learns_of_it(learning: RunningMesh) -> None:
    with learning.client() as client:
        dear = [
            ask(client, f"Explain the knot number {i} at length, please: " + "rope " * 200, "knots") for i in range(6)
        ]
        cheap = ask(client, "Hi?", "greetings")
        private = ask(client, "Explain my secret knot: " + "rope " * 200, "knots", tenant="private")
        until(lambda: {*dear, cheap, private} <= listed(client), what="the records are stored")

        refine = cycle(client, "refine")["refine"]
        assert refine["outcome"] == "DONE", refine
        assert refine["note"].startswith("4 answers of knots nominated")
        lines = until(lambda: len(found := platinum(learning)) >= 4 and found, within_s=30, what="they are refined")
        assert lines
        steps = cycle(client, "platinum", "map")
        found = client.get("/api/cognitive-map").json()

    assert {line["request_id"] for line in lines} <= set(dear)
    assert private not in {line["request_id"] for line in lines}
    assert {line["provenance"]["draft_model"] for line in lines} == {"courier"}
    assert steps["map"]["outcome"] == "DONE"
    assert [s["name"] for s in found["skills"]] == ["knots"]
    assert found["skills"][0]["n"] == pytest.approx(len(lines), abs=0.1)


def test_the_router_refuses_a_leader_that_was_followed(learning: RunningMesh) -> None:
    with grpc.insecure_channel(learning.target) as channel:
        stub = router_pb2_grpc.RouterServiceStub(channel)
        wish = router_pb2.NominateRequestsRequest(domain="nothing", count=1, value=0.5, fencing_token=1_000)
        assert list(stub.NominateRequests(wish, timeout=10).request_ids) == []
        wish.fencing_token = 999
        with pytest.raises(grpc.RpcError) as refused:
            stub.NominateRequests(wish, timeout=10)

    assert told(refused.value).reason == "STALE_FENCING_TOKEN"  # type: ignore[arg-type]


def test_a_killed_orchestrator_changes_nothing_for_clients_and_comes_back_with_its_map(learning: RunningMesh) -> None:
    with learning.client() as client:
        before = client.get("/api/cognitive-map").json()["skills"]
        learning.kill("orchestrator")
        ask(client, "Hi?", "greetings")
        learning.wait_ready()

        until(lambda: client.get("/api/orchestrator").json()["leader"], within_s=25, what="somebody leads again")
        after = client.get("/api/cognitive-map").json()["skills"]

    assert before == after != []
