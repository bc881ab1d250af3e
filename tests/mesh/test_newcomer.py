"""What a newcomer does first, through the real Envoy, with the real small model."""

import json
import subprocess
import sys
from pathlib import Path

import httpx
import openai
import pytest

from tests.support.mesh import RunningMesh

QUESTION = {"role": "user", "content": "Name three colours."}
GRPCURL = str(Path(sys.executable).parent / "grpcurl")


def grpcurl(mesh: RunningMesh, *arguments: str, data: str | None = None) -> subprocess.CompletedProcess[str]:
    payload = ["-d", data] if data is not None else []
    command = [GRPCURL, "-plaintext", *payload, mesh.target, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)


def test_curl_gets_a_sensible_answer_that_names_its_model(client: httpx.Client) -> None:
    answer = client.post("/v1/chat/completions", content=json.dumps({"model": "auto", "messages": [QUESTION]}))

    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert any(colour in body["choices"][0]["message"]["content"].lower() for colour in ("red", "blue", "green"))
    assert body["hivemind"]["chosen_model"] == "courier"
    assert answer.headers["x-hivemind-chosen-model"] == "courier"
    assert answer.headers["x-request-id"] == body["hivemind"]["request_id"]


def test_a_stream_ends_with_done_and_tells_how_it_came_about(client: httpx.Client) -> None:
    body = {"model": "courier", "messages": [QUESTION], "stream": True, "max_tokens": 20}
    with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        events = [line for line in answer.iter_lines() if line]

    assert events[-1] == "data: [DONE]"
    last = json.loads(events[-2].removeprefix("data: "))
    assert last["choices"] == []
    assert last["hivemind"]["strategy"] == "single"
    assert int(last["hivemind"]["usage"]["completion_tokens"]) > 0


def test_the_openai_client_works_unchanged(mesh: RunningMesh) -> None:
    with openai.OpenAI(base_url=f"{mesh.base_url}/v1", api_key="none") as api:
        plain = api.chat.completions.create(model="auto", messages=[QUESTION], max_tokens=30)  # type: ignore[list-item]
        stream = api.chat.completions.create(model="ok", messages=[QUESTION], stream=True)  # type: ignore[list-item, call-overload]
        text = "".join(c.choices[0].delta.content or "" for c in stream if c.choices)

        assert plain.choices[0].message.content
        assert text.strip() == "Paris is the capital of France."
        assert "auto" in [m.id for m in api.models.list()]


async def test_the_async_openai_client_works_with_tools(mesh: RunningMesh) -> None:
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    async with openai.AsyncOpenAI(base_url=f"{mesh.base_url}/v1", api_key="none") as api:
        plain = await api.chat.completions.create(model="tool_call", messages=[QUESTION], tools=tools)  # type: ignore[call-overload]
        stream = await api.chat.completions.create(model="tool_call", messages=[QUESTION], tools=tools, stream=True)  # type: ignore[call-overload]
        deltas = [c.choices[0].delta.tool_calls async for c in stream if c.choices]

    assert plain.choices[0].message.tool_calls[0].function.name == "weather"
    assert deltas[0][0].function.arguments == '{"city": "Paris"}'


def test_a_hint_travels_in_the_clients_extra_body(mesh: RunningMesh) -> None:
    with openai.OpenAI(base_url=f"{mesh.base_url}/v1", api_key="none") as api:
        hints = {"hivemind": {"hints": {"strategy": "nonsense"}}}
        with pytest.raises(openai.BadRequestError) as refused:
            api.chat.completions.create(model="auto", messages=[QUESTION], extra_body=hints)  # type: ignore[list-item]

    assert refused.value.param == "hints.strategy"


def test_rest_answers_with_every_field_of_a_completion(client: httpx.Client) -> None:
    answer = client.post("/api/complete", json={"messages": [QUESTION], "max_tokens": 10, "tenant": "t1"})

    assert answer.status_code == 200, answer.text
    fields = "request_id strategy chosen_model model adapter usage cost_micros latency reason degraded"
    assert set(fields.split()) <= answer.json().keys()
    record = client.get(f"/api/requests/{answer.json()['request_id']}").json()
    assert record["tenant"] == "t1"
    assert record["outcome"] == "OK"
    assert record["calls"][0]["usage"]["completion_tokens"] <= 10


def test_rest_streams_json_lines_that_end_with_final(client: httpx.Client) -> None:
    answer = client.post("/api/complete:stream", json={"messages": [QUESTION], "model": "ok"})

    lines = [json.loads(line) for line in answer.text.splitlines() if line]
    assert "".join(line["delta"] for line in lines[:-1]).strip() == lines[-1]["final"]["message"]["content"].strip()
    assert lines[-1]["final"]["chosen_model"] == "ok"


def test_a_decision_calls_nothing_and_leaves_a_record(client: httpx.Client) -> None:
    decision = client.post("/api/route", json={"messages": [QUESTION]}).json()

    assert decision["strategy"] == "single"
    assert decision["candidates"][0]["chosen_model"] == decision["chosen_model"]
    record = client.get(f"/api/requests/{decision['request_id']}").json()
    assert record["surface"] == "DECIDE"
    assert record["calls"] == []


def test_grpcurl_lists_describes_and_calls_every_service(mesh: RunningMesh) -> None:
    listed = grpcurl(mesh, "list").stdout.split()
    calls = (
        "RouterService/ListModels", "GovernorService/GetConfig", "ArbiterService/ListPlatinum",
        "AdapterRegistryService/GetState", "TrainerService/ListJobs", "OrchestratorService/GetStatus",
    )  # fmt: skip

    for name in calls:
        service, method = name.split("/")
        assert f"hivemind.v1.{service}" in listed
        assert f"rpc {method} " in grpcurl(mesh, "describe", f"hivemind.v1.{service}").stdout
        answer = grpcurl(mesh, f"hivemind.v1.{name}", data="{}")
        assert answer.returncode == 0, answer.stderr


def test_grpc_web_works_through_envoy(client: httpx.Client) -> None:
    answer = client.post(
        "/hivemind.v1.GovernorService/GetConfig",
        content=b"\0\0\0\0\0",
        headers={"content-type": "application/grpc-web+proto", "x-grpc-web": "1"},
    )

    assert answer.status_code == 200
    assert b"grpc-status:0" in answer.content


def test_the_hivemind_command_answers(mesh: RunningMesh) -> None:
    asked = mesh.command("ask", "Name three colours.", "--max-tokens", "20")
    mesh.wait_ready()
    status = json.loads(mesh.command("status", "--json").stdout)

    assert "courier" in asked.stdout
    assert all(ready for ready, _ in status["parts"].values()), status
    assert {"router", "router-2", "engine", "envoy", "governor"} <= status["parts"].keys()
    assert json.loads(mesh.command("models", "--json").stdout)["models"][0]["id"] == "auto"


def test_without_a_master_the_courier_answers_and_says_so(client: httpx.Client) -> None:
    models = {m["id"]: m for m in client.get("/api/models").json()["models"]}

    assert models["oracle"]["health"] == "NOT_CONFIGURED"
    assert "hivemind.toml" in models["oracle"]["note"]
