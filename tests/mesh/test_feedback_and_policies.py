"""Opinions on answers, and policies, through a real mesh with two Routers and a real Redis."""

import json
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.mesh import RunningMesh, Upstream, courier_and_master, running_mesh
from tests.support.waiting import until

MESSAGES = [{"role": "user", "content": "Who wrote Faust?"}]


def ask(client: httpx.Client, model: str = "ok", tenant: str = "", **headers: str) -> httpx.Response:
    headers = {**({"x-hivemind-tenant": tenant} if tenant else {}), **headers}
    body = {"model": model, "messages": MESSAGES, "max_tokens": 8}
    return client.post("/v1/chat/completions", json=body, headers=headers)


def candidates(client: httpx.Client, tenant: str) -> list[dict[str, Any]]:
    """What is expected of a single call of each model; waited for while Envoy looks for the Router."""
    body = {"messages": MESSAGES, "tenant": tenant, "hints": {"strategy": "single"}}

    def found() -> list[dict[str, Any]]:
        made: list[dict[str, Any]] = client.post("/api/route", json=body).json()["candidates"]
        return made

    return until(found, what="the Router decides")


def give(client: httpx.Client, request_id: str, tenant: str = "", **opinion: Any) -> httpx.Response:
    headers = {"x-hivemind-tenant": tenant} if tenant else {}
    return client.post("/api/feedback", json={"request_id": request_id, **opinion}, headers=headers)


def feedback_of(client: httpx.Client, request_id: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.get(f"/api/requests/{request_id}").json()["feedback"]
    return found


@pytest.mark.parametrize("opinion", [{"rating": -1}, {"preferred": "b"}, {"demonstration": "Goethe."}])
def test_an_opinion_is_stored_with_its_request(client: httpx.Client, opinion: dict[str, Any]) -> None:
    request_id = ask(client).headers["x-request-id"]

    answer = give(client, request_id, **opinion)

    assert answer.status_code == 200, answer.text
    stored = feedback_of(client, request_id)
    assert len(stored) == 1
    assert stored[0] | opinion == stored[0]


def test_the_same_opinion_twice_has_one_effect_also_at_the_same_time(client: httpx.Client) -> None:
    request_id = ask(client).headers["x-request-id"]
    answers: list[str] = []
    threads = [
        threading.Thread(target=lambda: answers.append(give(client, request_id, rating=1, idempotency_key="k").text))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(set(answers)) == 1
    assert len(feedback_of(client, request_id)) == 1


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"rating": 7}, "rating"),
        ({"preferred": "c"}, "preferred"),
        ({"demonstration": " "}, "demonstration"),
        ({}, "opinion"),
    ],
)
def test_a_bad_opinion_is_refused_with_its_field(client: httpx.Client, body: dict[str, Any], field: str) -> None:
    request_id = ask(client).headers["x-request-id"]

    answer = give(client, request_id, **body)

    assert answer.status_code == 400
    assert field in answer.json()["message"]


def test_another_tenants_request_is_not_found(client: httpx.Client) -> None:
    request_id = ask(client, tenant="owner").headers["x-request-id"]

    assert give(client, request_id, tenant="stranger", rating=-1).status_code == 404
    assert feedback_of(client, request_id) == []


def test_opinions_survive_kill_9_of_redis(client: httpx.Client, mesh: RunningMesh) -> None:
    request_id = ask(client).headers["x-request-id"]
    assert give(client, request_id, rating=1).status_code == 200
    mesh.redis().kill()

    until(lambda: len(feedback_of(client, request_id)) == 1, within_s=20, what="the opinion is there again")


def test_a_flood_of_bad_opinions_moves_no_other_tenants_decisions(
    tmp_path_factory: pytest.TempPathFactory, upstream: Upstream
) -> None:
    with running_mesh(tmp_path_factory.mktemp("flood"), courier_and_master(upstream)) as mesh, mesh.client() as client:

        def chosen(tenant: str) -> tuple[str, float]:
            found = candidates(client, tenant)
            quality = next(c["quality"] for c in found if c["chosen_model"] == "courier")
            return found[0]["chosen_model"], quality

        before = {tenant: chosen(tenant) for tenant in ("angry", "calm")}
        assert before["angry"][0] == "courier", before
        for _ in range(60):
            # a named request is not classified: the opinion has to come from one for auto
            request_id = ask(client, "auto", tenant="angry").headers["x-request-id"]
            assert give(client, request_id, tenant="angry", rating=-1).status_code == 200

        until(lambda: chosen("angry")[0] == "master", within_s=10, what="the angry tenant is heard")
        assert chosen("calm") == before["calm"]


def test_verdicts_of_the_judge_move_the_estimates_of_their_tenant_only(
    tmp_path_factory: pytest.TempPathFactory, upstream: Upstream
) -> None:
    config = courier_and_master(upstream, courier="wrong").replace('model = "ok"', 'model = "panel"')
    config += f'[models.judge]\nendpoints = [{{ base_url = "{upstream.base_url}", model = "panel" }}]\n'
    with running_mesh(tmp_path_factory.mktemp("judged"), config) as mesh, mesh.client() as client:

        def expected(tenant: str) -> dict[str, float]:
            return {c["chosen_model"]: c["quality"] for c in candidates(client, tenant)}

        before = {tenant: expected(tenant) for tenant in ("judged", "other")}
        body = {"model": "auto", "messages": MESSAGES, "hivemind": {"hints": {"strategy": "committee"}}}
        for _ in range(8):
            answer = client.post("/v1/chat/completions", json=body, headers={"x-hivemind-tenant": "judged"})
            assert answer.status_code == 200, answer.text
        path = f"/api/requests/{answer.headers['x-request-id']}"
        judgements = until(lambda: client.get(path).json()["judgements"], what="the record is there")

        def learned() -> bool:
            now = expected("judged")
            return now["courier"] < before["judged"]["courier"] and now["master"] > before["judged"]["master"]

        until(learned, what="the courier, whose proposals lost, is expected to be right less often")
        assert expected("other") == before["other"]

    against = {j["alias"]: j["points_against_others"] for j in judgements}
    assert against == {"courier": 0.0, "master": 1.0}


def test_the_report_counts_what_was_rated(client: httpx.Client, mesh: RunningMesh) -> None:
    request_id = ask(client, "auto").headers["x-request-id"]
    assert give(client, request_id, rating=1).status_code == 200

    shown = mesh.command("router", "report", "--json", check=False)
    assert shown.returncode == 0, shown.stderr
    found = json.loads(shown.stdout)

    assert found["requests"] >= 1
    assert found["rated"] >= 1
    assert "rated good" in mesh.command("router", "report").stdout


def test_records_are_exported_with_their_feedback(client: httpx.Client, mesh: RunningMesh, tmp_path: Path) -> None:
    mine, other = ask(client, tenant="exporter").headers["x-request-id"], ask(client).headers["x-request-id"]
    assert give(client, mine, tenant="exporter", demonstration="Goethe.").status_code == 200
    until(lambda: client.get(f"/api/requests/{other}").status_code == 200, what="the records are stored")

    mesh.command("router", "export", str(tmp_path / "all.jsonl"))
    mesh.command("router", "export", str(tmp_path / "one.jsonl"), "--tenant", "exporter")

    rows = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text("utf-8").splitlines()]
    assert {mine, other} <= {r["request_id"] for r in rows}
    assert len({r["request_id"] for r in rows}) == len(rows)
    one = [json.loads(line) for line in (tmp_path / "one.jsonl").read_text("utf-8").splitlines()]
    assert [(r["request_id"], [f["demonstration"] for f in r["feedback"]]) for r in one] == [(mine, ["Goethe."])]


VARIED = {
    "Who painted the Mona Lisa?": "facts",
    "What is the capital of Australia?": "facts",
    "Write a Python function that merges two sorted lists without using sort.": "code",
    "Fix this code: def add(a, b): return a - b": "code",
    "Solve the equation 3x^2 - 12x + 9 = 0 and evaluate the sum of its roots.": "math",
    "A train travels 60 miles in 45 minutes. How many miles does it travel in 2 hours?": "math",
    "The plaintiff sued the defendant for breach of contract; will the court find for the plaintiff?": "law",
    "A patient has fever and a rash; which disease fits these symptoms?": "medicine",
    "Rewrite this sentence as a poem about the sea.": "writing",
    "There are 3 houses in a row. Use the clues to solve the puzzle: who lives left of the baker?": "logic",
}


def test_ten_varied_prompts_are_decided_for_reasons_that_differ(
    tmp_path_factory: pytest.TempPathFactory, upstream: Upstream
) -> None:
    with running_mesh(tmp_path_factory.mktemp("varied"), courier_and_master(upstream)) as mesh, mesh.client() as client:
        decisions = {}
        for prompt, domain in VARIED.items():
            made = client.post("/api/route", json={"messages": [{"role": "user", "content": prompt}]}).json()
            assert made["domain"] == domain, prompt
            record = client.get(f"/api/requests/{made['request_id']}").json()
            assert record["decision"]["reason"] == made["reason"]
            assert record["calls"] == []
            decisions[prompt] = made

    assert len({d["reason"] for d in decisions.values()}) >= 8
    assert {d["chosen_model"] for d in decisions.values()} == {"courier", "master"}
    assert decisions["Who painted the Mona Lisa?"]["chosen_model"] == "courier"


def test_a_policy_limits_models_and_records_its_shadow(client: httpx.Client) -> None:
    answer = ask(client, "panel", **{"x-hivemind-policy": "frugal"})

    assert answer.status_code == 200, answer.text
    record = client.get(f"/api/requests/{answer.headers['x-request-id']}").json()
    assert record["policy"] == "frugal"
    assert record["shadow"]["policy"] == "lavish"
    assert record["shadow"]["chosen_model"] == "panel"


def test_a_tenants_policy_applies_without_being_named(client: httpx.Client) -> None:
    answer = ask(client, "master", tenant="thrifty")

    assert answer.status_code == 400
    assert "the policy does not allow master" in answer.json()["error"]["message"]


def test_a_policy_is_named_on_the_api_too(client: httpx.Client) -> None:
    body = {"model": "panel", "messages": MESSAGES, "hints": {"strategy": "debate"}}
    answer = client.post("/api/route", json=body, headers={"x-hivemind-policy": "frugal"})

    assert answer.status_code == 400
    assert "the policy does not allow debate" in answer.json()["message"]


def test_an_unknown_policy_is_a_400_that_names_it(client: httpx.Client) -> None:
    answer = ask(client, **{"x-hivemind-policy": "nonsense"})

    assert answer.status_code == 400
    assert answer.json()["error"]["reason"] == "UNKNOWN_POLICY"
    assert answer.json()["error"]["param"] == "x-hivemind-policy"
