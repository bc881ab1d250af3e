"""Refinement through the whole mesh: REST, the Governor's switch, and an Arbiter that dies again and again."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from hivemind.v1 import arbiter_pb2, arbiter_pb2_grpc
from tests.support.mesh import RunningMesh, running_mesh, scripted_upstream
from tests.support.scripted_oracle import REFINED
from tests.support.waiting import until

CLIENTS = 50
VICTIMS = ("arbiter", "redis", "arbiter")
BUDGET = {"tenant": "*", "period": "DAY", "purpose": "REFINEMENT", "limit_micros": 10**9}


@pytest.fixture(scope="module")
def refining(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningMesh]:
    with scripted_upstream() as upstream:
        table = f'endpoints = [{{ base_url = "{upstream.base_url}", model = "o_good" }}]\ncontext_tokens = 128000\n'
        prices = "input_price = 2.5\noutput_price = 10.0\n"
        config = "".join(f"[models.{alias}]\n{table}{prices}" for alias in ("oracle", "arbiter"))
        config += f'[models.courier]\nendpoints = [{{ base_url = "{upstream.base_url}", model = "ok" }}]\n'
        config += "[tenants.quiet]\ntraining = false\n"
        with running_mesh(tmp_path_factory.mktemp("refining"), config) as mesh, mesh.client() as client:
            client.post("/api/config/governor", json={"budgets": [BUDGET]}).raise_for_status()
            yield mesh


def body(name: str = "x", **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"What is the capital of France? ({name})"}]
    return {"messages": messages, "draft": "It is a big city.", **fields}


def ledger_ids(mesh: RunningMesh) -> list[str]:
    lines = [line for file in (mesh.home / "datasets").glob("training_metadata*.jsonl") for line in _lines(file)]
    return [line["id"] for line in lines if line["role"] == "arbiter_refined"]


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_draft_is_refined_over_rest(refining: RunningMesh) -> None:
    with refining.client() as client:
        answer = client.post("/api/refine", json=body()).json()

    assert answer["example"]["final_platinum_answer"] == REFINED
    assert answer["example"]["provenance"]["oracle_model"] == "o_good-2026-11"
    assert answer["example"]["id"] in ledger_ids(refining)


def test_the_switch_of_the_governor_holds_within_a_second(refining: RunningMesh) -> None:
    with refining.client() as client:

        def status() -> int:
            return client.post("/api/refine", json=body()).status_code

        client.post("/api/config/governor", json={"enabled": False}).raise_for_status()
        until(lambda: status() == 400, within_s=1.0, what="refinement is off")
        refused = client.post("/api/refine", json=body()).json()
        client.post("/api/config/governor", json={"enabled": True}).raise_for_status()
        until(lambda: status() == 200, within_s=1.0, what="refinement is on again")

    assert "REFINEMENT_DISABLED" in json.dumps(refused)


QUESTION = [{"role": "user", "content": "What is the capital of France? Tell ann@example.org."}]


def asked(client: httpx.Client, path: str, **fields: Any) -> dict[str, Any]:
    """What an answer on one of the four paths says about itself."""
    if path.startswith("/v1"):
        answer = client.post(path, json={"model": "courier", "messages": QUESTION, **fields})
        if not fields.get("stream"):
            return dict(answer.json()["hivemind"])
        chunks = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
        return dict(chunks[-1]["hivemind"])
    answer = client.post(path, json={"model": "courier", "messages": QUESTION, **fields})
    if path.endswith(":stream"):
        return dict(json.loads(answer.text.splitlines()[-1])["final"])
    return dict(answer.json())


PATHS = [
    ("/api/complete", {"refine": True}),
    ("/api/complete:stream", {"refine": True}),
    ("/v1/chat/completions", {"hivemind": {"refine": True}}),
    ("/v1/chat/completions", {"hivemind": {"refine": True}, "stream": True}),
]


@pytest.mark.parametrize(("path", "fields"), PATHS, ids=["api", "api stream", "v1", "v1 stream"])
def test_an_answer_carries_its_refinement_where_that_is_asked_for(
    refining: RunningMesh, path: str, fields: dict[str, Any]
) -> None:
    with refining.client() as client:
        told = asked(client, path, **fields)
        example = client.get(f"/api/platinum/{told['platinum_id']}").json()

    assert told["refined_answer"] == REFINED
    assert example["request_id"] == told["request_id"]
    assert example["messages"][0]["content"] == "What is the capital of France? Tell [EMAIL]."


def example_of(client: httpx.Client, request_id: str) -> dict[str, Any] | None:
    examples = client.get("/api/platinum").json()["examples"]
    return next((e for e in examples if e["request_id"] == request_id), None)


def test_a_right_answer_of_a_person_becomes_platinum_without_a_secret(refining: RunningMesh) -> None:
    with refining.client() as client:
        request_id = asked(client, "/v1/chat/completions")["request_id"]
        right = {"request_id": request_id, "demonstration": "Paris. Ask bo@example.org."}
        client.post("/api/feedback", json=right).raise_for_status()
        until(lambda: example_of(client, request_id) is not None, within_s=15, what="the example is stored")
        example = example_of(client, request_id)

    assert example is not None
    assert (example["refined_by"], example["origin"]) == ("HUMAN", "feedback")
    assert example["final_platinum_answer"].startswith("Paris. Ask [EMAIL")


def test_an_answer_that_was_rated_bad_waits_while_refinement_is_off_and_is_refined_when_it_is_on(
    refining: RunningMesh,
) -> None:
    with refining.client() as client:
        client.post("/api/config/governor", json={"enabled": False}).raise_for_status()
        until(lambda: "degraded" in refused(client), within_s=2, what="refinement is off")
        before = int(client.get("/api/platinum:stats").json()["queued"])
        # a conversation that nobody has asked before: the queue takes each once
        fresh = [{"role": "user", "content": "What is the capital of France, and of Italy?"}]
        request_id = asked(client, "/v1/chat/completions", messages=fresh)["request_id"]
        client.post("/api/feedback", json={"request_id": request_id, "rating": -1}).raise_for_status()

        def queued() -> bool:
            return int(client.get("/api/platinum:stats").json()["queued"]) > before

        try:
            until(queued, within_s=15, what="the candidate waits")
            assert example_of(client, request_id) is None
        finally:
            client.post("/api/config/governor", json={"enabled": True}).raise_for_status()
        until(lambda: example_of(client, request_id) is not None, within_s=30, what="it is refined")
        example = example_of(client, request_id)

    assert example is not None
    assert (example["refined_by"], example["origin"]) == ("ORACLE", "traffic")


def refused(client: httpx.Client) -> dict[str, Any]:
    """What an answer says whose refinement was refused; empty if it was not."""
    told = asked(client, "/api/complete", refine=True)
    return told if any("not refined" in d for d in told["degraded"]) else {}


def test_nothing_is_kept_of_a_tenant_that_refuses(refining: RunningMesh) -> None:
    with refining.client(headers={"x-hivemind-tenant": "quiet"}) as client:
        told = asked(client, "/api/complete", refine=True)
        client.post("/api/feedback", json={"request_id": told["request_id"], "demonstration": "Paris."})

        def lost() -> bool:
            ports = [p["metrics"] for n, p in refining.plan["processes"].items() if n.startswith("router")]
            texts = [httpx.get(f"http://127.0.0.1:{port}/metrics").text for port in ports]
            lines = [line for text in texts for line in text.splitlines()]
            return any(float(ln.split()[1]) > 0 for ln in lines if ln.startswith("hivemind_nominations_lost_total"))

        until(lost, within_s=15, what="the demonstration finds no conversation")

    assert any("consent" in d for d in told["degraded"])
    with refining.client() as client:
        assert example_of(client, told["request_id"]) is None


def test_an_arbiter_that_is_killed_again_and_again_keeps_every_acknowledged_example_once(
    refining: RunningMesh,
) -> None:
    acknowledged: dict[str, str] = {}
    ended = threading.Event()

    def refine_for_ever(client_number: int) -> None:
        number = 0
        with refining.client() as client:
            while not ended.is_set():
                key = f"key-{client_number}-{number}"
                try:
                    answer = client.post("/api/refine", json=body(key, idempotency_key=key))
                except httpx.HTTPError:
                    continue
                if answer.status_code == 200:
                    acknowledged[key] = answer.json()["example"]["id"]
                    number += 1

    with ThreadPoolExecutor(CLIENTS) as pool:
        running = [pool.submit(refine_for_ever, i) for i in range(CLIENTS)]
        try:
            for victim in VICTIMS:
                until(_more_than(acknowledged, 30), within_s=60.0, what="examples are acknowledged")
                if victim == "redis":
                    refining.redis().kill()
                else:
                    refining.kill(victim)
            until(_more_than(acknowledged, 30), within_s=60.0, what="examples are acknowledged after the last death")
        finally:
            ended.set()
        for future in running:
            future.result()

    stored = ledger_ids(refining)
    assert len(stored) == len(set(stored))
    assert set(acknowledged.values()) <= set(stored)
    assert len(set(acknowledged.values())) == len(acknowledged)
    assert set(acknowledged.values()) <= delivered(refining, len(stored))


def delivered(mesh: RunningMesh, count: int) -> set[str]:
    """The ids that a consumer group gets, until it has so many."""
    found: set[str] = set()
    request = arbiter_pb2.StreamPlatinumRequest(group="learner", consumer="one", max_in_flight=1000)
    with grpc.insecure_channel(mesh.target) as channel:
        stub = arbiter_pb2_grpc.ArbiterServiceStub(channel)
        stream = stub.StreamPlatinum(request, timeout=60)
        for message in stream:
            if message.HasField("example"):
                found.add(message.example.id)
                stub.AckPlatinum(arbiter_pb2.AckPlatinumRequest(group="learner", sequences=[message.example.sequence]))
            if len(found) == count:
                break
        stream.cancel()
    return found


def _more_than(acknowledged: dict[str, str], more: int) -> Any:
    begin = len(acknowledged)
    return lambda: len(acknowledged) > begin + more
