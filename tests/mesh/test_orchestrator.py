"""The loop on a running mesh: an operator's commands, and opinions that move decisions through the cognitive map."""

import json

import httpx

from tests.support.mesh import RunningMesh
from tests.support.waiting import until


def test_somebody_leads_and_a_cycle_can_be_asked_for(client: httpx.Client, mesh: RunningMesh) -> None:
    status = until(lambda: (s := client.get("/api/orchestrator").json()) and s["leader"] and s, within_s=20)
    cycle = client.post("/api/orchestrator:cycle", json={})
    shown = mesh.command("orchestrator", "status")
    history = json.loads(mesh.command("orchestrator", "history", "--json").stdout)

    assert status["is_leader"]
    assert cycle.status_code == 200, cycle.text
    outcomes = {s["name"]: (s["outcome"], s["note"]) for s in cycle.json()["steps"]}
    assert list(outcomes) == ["platinum", "map", "refine", "online", "train", "challengers", "housekeeping"]
    assert [text for outcome, text in outcomes.values() if outcome == "FAILED"] == []
    assert outcomes["train"] == ("SKIPPED", "no role may change by itself (autopromote is off)")
    assert f"{status['leader']} leads" in shown.stdout
    assert cycle.json()["id"] in {c["id"] for c in history["cycles"]}


def test_a_pause_holds_until_it_is_lifted(client: httpx.Client, mesh: RunningMesh) -> None:
    mesh.command("orchestrator", "pause", "--reason", "a test")
    refused = client.post("/api/orchestrator:cycle", json={})
    paused = client.get("/api/orchestrator").json()
    resumed = json.loads(mesh.command("orchestrator", "resume", "--json").stdout)

    assert (paused["paused"], paused["pause_reason"]) == (True, "a test")
    assert (refused.status_code, refused.json()["details"][0]["reason"]) == (400, "LOOP_PAUSED")
    assert not resumed["paused"]


def test_bad_ratings_of_many_make_a_weak_domain_and_the_next_decision_says_so(
    client: httpx.Client, mesh: RunningMesh
) -> None:
    def body(tenant: str) -> dict[str, object]:
        messages = [{"role": "user", "content": "Which knot holds a sheet to a clew?"}]
        return {
            "messages": messages,
            "model": "courier",
            "max_tokens": 1,
            "tenant": tenant,
            "hints": {"domain": "knots"},
        }

    def reason() -> str:
        wish = {**body("someone"), "model": "auto", "max_tokens": 50}
        return str(client.post("/api/route", json=wish).json()["reason"])

    before = reason()
    for i in range(14):
        answer = client.post("/api/complete", json=body(f"crew-{i}")).json()
        rated = client.post("/api/feedback", json={"request_id": answer["request_id"], "rating": -1})
        assert rated.status_code == 200, rated.text
    client.post("/api/orchestrator:cycle", json={"steps": ["platinum", "map"]})
    found = client.get("/api/cognitive-map?domain=knots").json()["skills"]
    until(lambda: "weak there" in reason(), what="the Routers have heard of it")
    table = mesh.command("skills")
    listed = json.loads(mesh.command("skills", "--json").stdout)

    assert "weak there" not in before
    assert found[0]["n"] > 13
    assert found[0]["confidence"] < 0.05
    assert "knots" in table.stdout
    assert "knots" in {s["name"] for s in listed["skills"]}


def test_a_demonstration_can_be_traced_from_its_request(client: httpx.Client, mesh: RunningMesh) -> None:
    question = {"messages": [{"role": "user", "content": "What is the tallest tree of Ruritania?"}], "model": "ok"}
    request_id = client.post("/api/complete", json=question).json()["request_id"]
    client.post("/api/feedback", json={"request_id": request_id, "demonstration": "The Great Elm of Zenda."})

    def stored() -> dict[str, str] | None:
        examples = client.get("/api/platinum").json()["examples"]
        return next((e for e in examples if e["request_id"] == request_id), None)

    example = until(stored, within_s=20, what="the example")
    assert example is not None
    found = json.loads(mesh.command("trace", example["id"], "--json").stdout)

    assert found["request"]["request_id"] == request_id
    assert found["example"]["final_platinum_answer"] == "The Great Elm of Zenda."
    assert found["missing"] == ["no adapter has learnt it yet"]
