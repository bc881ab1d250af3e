"""Every strategy end to end through Envoy against scripted model servers: FAULTS 15, 20 and what a client sees."""

import json
import threading
import time
from typing import Any

import grpc
import httpx
import pytest

from hivemind.v1 import common_pb2, router_pb2, router_pb2_grpc
from tests.support.mesh import RunningMesh, Upstream, courier_and_master, running_mesh
from tests.support.waiting import until

MESSAGES = [{"role": "user", "content": "What is six times seven?"}]
MANY = ("vote", "committee", "debate", "clone_dispatch")


def ask(client: httpx.Client, model: str, strategy: str, **fields: Any) -> httpx.Response:
    hints = {"strategy": strategy, **fields.pop("hints", {})}
    tenant = fields.pop("tenant", "")
    body = {"model": model, "messages": MESSAGES, "hivemind": {"hints": hints}, **fields}
    headers = {"x-hivemind-tenant": tenant} if tenant else {}
    return client.post("/v1/chat/completions", json=body, headers=headers)


def record_of(client: httpx.Client, request_id: str) -> dict[str, Any]:
    def found() -> httpx.Response | None:
        answer = client.get(f"/api/requests/{request_id}")
        return None if answer.status_code == 503 else answer  # Envoy has not found this door of the Router yet

    record: dict[str, Any] = until(found, what="the Router answers").json()
    return record


@pytest.mark.parametrize(
    ("strategy", "text", "roles"),
    [
        ("vote", "42", {"proposer": 5}),
        ("committee", "Forty-two [1].", {"proposer": 3, "judge": 6, "merger": 1}),
        ("debate", "42", {"proposer": 3}),
        ("clone_dispatch", "Six and seven make forty-two.", {"proposer": 1, "worker": 2, "merger": 1}),
    ],
)
def test_a_strategy_makes_its_calls_and_the_record_tells_them_all(
    client: httpx.Client, strategy: str, text: str, roles: dict[str, int]
) -> None:
    answer = ask(client, "panel", strategy)

    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert text in body["choices"][0]["message"]["content"]
    assert body["hivemind"]["strategy"] == answer.headers["x-hivemind-strategy"] == strategy
    assert body["hivemind"]["chosen_model"] == "panel"
    record = record_of(client, answer.headers["x-request-id"])
    made = [c["role"] for c in record["calls"]]
    assert {r: made.count(r) for r in made} == roles
    assert body["usage"]["total_tokens"] == 150 * len(made) == record["usage"]["total_tokens"]
    assert int(record["cost_micros"]) == sum(int(c["cost_micros"]) for c in record["calls"])
    assert all(c["prompt_version"] for c in record["calls"] if c["role"] in ("judge", "merger"))


@pytest.mark.parametrize("strategy", MANY)
def test_a_streamed_strategy_sends_comments_then_the_answer_then_done(client: httpx.Client, strategy: str) -> None:
    answer = ask(client, "panel", strategy, stream=True)

    lines = [line for line in answer.text.splitlines() if line]
    assert lines[0].startswith(": ")
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert chunks[-1]["hivemind"]["strategy"] == strategy
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks if c["choices"])


@pytest.mark.parametrize("strategy", ["single", *MANY])
def test_strategy_and_chosen_model_are_in_the_answer_of_every_path(
    client: httpx.Client, mesh: RunningMesh, strategy: str
) -> None:
    said: dict[str, tuple[str, str]] = {}
    plain, stream = ask(client, "panel", strategy), ask(client, "panel", strategy, stream=True)
    for name, answer, about in (("v1", plain, plain.json()), ("v1 stream", stream, chunks_of(stream)[-1])):
        said[f"{name} headers"] = (answer.headers["x-hivemind-strategy"], answer.headers["x-hivemind-chosen-model"])
        said[name] = (about["hivemind"]["strategy"], about["hivemind"]["chosen_model"])
    body = {"model": "panel", "messages": MESSAGES, "hints": {"strategy": strategy}}
    whole = client.post("/api/complete", json=body).json()
    said["api"] = (whole["strategy"], whole["chosen_model"])
    last = json.loads(client.post("/api/complete:stream", json=body).text.splitlines()[-1])["final"]
    said["api stream"] = (last["strategy"], last["chosen_model"])
    asked = router_pb2.CompleteRequest(
        model="panel", messages=[common_pb2.ChatMessage(**MESSAGES[0])], hints=common_pb2.Hints(strategy=strategy)
    )
    with grpc.insecure_channel(mesh.target) as channel:
        stub = router_pb2_grpc.RouterServiceStub(channel)
        unary, streamed = stub.Complete(asked, timeout=30), list(stub.StreamComplete(asked, timeout=30))[-1].final
    said["grpc"] = (unary.strategy, unary.chosen_model)
    said["grpc stream"] = (streamed.strategy, streamed.chosen_model)

    assert said == dict.fromkeys(said, (strategy, "panel"))
    assert len(said) == 8


@pytest.mark.parametrize("strategy", ["single", *MANY])
@pytest.mark.parametrize("stream", [False, True])
def test_the_local_courier_answers_by_every_strategy(client: httpx.Client, strategy: str, stream: bool) -> None:
    hints = {"subtasks": ["What is six?", "What is seven?"]} if strategy == "clone_dispatch" else {}
    answer = ask(client, "courier", strategy, stream=stream, max_tokens=6, hints=hints)

    assert answer.status_code == 200, answer.text
    about = chunks_of(answer)[-1]["hivemind"] if stream else answer.json()["hivemind"]
    text = "".join(words_of(chunks_of(answer))) if stream else answer.json()["choices"][0]["message"]["content"]
    assert text.strip()
    assert (about["strategy"], about["chosen_model"]) == (strategy, "courier")
    assert about["degraded"] == []
    record = record_of(client, answer.headers["x-request-id"])
    assert all(c["usage"]["completion_tokens"] > 0 for c in record["calls"])
    assert record["outcome"] == "OK"


def test_a_streamed_strategy_tells_its_steps_on_the_api(client: httpx.Client) -> None:
    body = {"model": "panel", "messages": MESSAGES, "hints": {"strategy": "committee"}}
    answer = client.post("/api/complete:stream", json=body)

    messages = [json.loads(line) for line in answer.text.splitlines() if line]
    assert next(m["progress"]["role"] for m in messages if "progress" in m) == "proposer"
    assert messages[-1]["final"]["strategy"] == "committee"
    assert messages[-1]["final"]["message"]["content"] == "Forty-two [1]."


def chunks_of(answer: httpx.Response) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]


def words_of(chunks: list[dict[str, Any]]) -> list[str]:
    deltas = [c["choices"][0]["delta"] for c in chunks if c.get("choices")]
    return [d["content"] for d in deltas if d.get("content")]


@pytest.mark.parametrize(
    ("strategy", "words"),
    [
        ("committee", ["Forty-two ", "[1]."]),
        ("clone_dispatch", ["Six ", "and ", "seven ", "make ", "forty-two."]),
    ],
)
def test_the_synthesis_streams_its_tokens_after_the_steps(
    client: httpx.Client, strategy: str, words: list[str]
) -> None:
    answer = ask(client, "panel", strategy, stream=True, stream_options={"include_usage": True})

    chunks = chunks_of(answer)
    assert words_of(chunks) == words
    assert answer.text.rindex("\n: ") < answer.text.index("data: ")
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert {c["id"] for c in chunks} == {f"chatcmpl-{answer.headers['x-request-id']}"}
    assert {c["model"] for c in chunks} == {"scripted-1"}
    assert [c["choices"][0]["finish_reason"] for c in chunks if c["choices"]][-1] == "stop"
    record = record_of(client, answer.headers["x-request-id"])
    calls = len(record["calls"])
    assert chunks[-2]["usage"]["total_tokens"] == 150 * calls == chunks[-1]["hivemind"]["usage"]["total_tokens"]
    assert record["calls"][-1]["role"] == "merger"
    assert "first_token_latency" in record["calls"][-1]
    assert record["outcome"] == "OK"
    assert int(record["cost_micros"]) == sum(int(c["cost_micros"]) for c in record["calls"]) > 0


def test_the_large_model_of_a_cascade_streams_its_tokens(
    tmp_path_factory: pytest.TempPathFactory, upstream: Upstream
) -> None:
    config = courier_and_master(upstream, courier="unsure")
    with running_mesh(tmp_path_factory.mktemp("cascade_stream"), config) as mesh, mesh.client() as client:
        answer = ask(client, "auto", "cascade", stream=True)

    assert "".join(words_of(chunks_of(answer))).strip() == "Paris is the capital of France."
    assert len(words_of(chunks_of(answer))) > 1
    assert answer.text.rstrip().endswith("data: [DONE]")


def test_the_synthesis_streams_as_deltas_on_the_api(client: httpx.Client) -> None:
    body = {"model": "panel", "messages": MESSAGES, "hints": {"strategy": "clone_dispatch"}}
    answer = client.post("/api/complete:stream", json=body)

    messages = [json.loads(line) for line in answer.text.splitlines() if line]
    deltas = [m["delta"] for m in messages if "delta" in m]
    assert len(deltas) > 1
    assert "".join(deltas) == messages[-1]["final"]["message"]["content"] == "Six and seven make forty-two."


@pytest.mark.parametrize("alias", ["panel_breaks", "panel_hangs_mid"])
@pytest.mark.parametrize("strategy", ["committee", "clone_dispatch"])
def test_a_synthesis_that_breaks_after_tokens_ends_with_an_error_and_never_with_done(
    client: httpx.Client, alias: str, strategy: str
) -> None:
    answer = ask(client, alias, strategy, stream=True)

    assert "[DONE]" not in answer.text
    chunks = chunks_of(answer)
    assert chunks[-1]["error"]["reason"] == "UPSTREAM_FAILED"
    assert words_of(chunks[:-1])
    record = record_of(client, answer.headers["x-request-id"])
    assert record["outcome"] == "UPSTREAM_FAILED"
    assert record["calls"][-1]["error"]
    assert record["calls"][-1]["usage"]["estimated"] is True


def test_a_synthesis_that_breaks_after_tokens_has_no_final_on_the_api(client: httpx.Client) -> None:
    body = {"model": "panel_breaks", "messages": MESSAGES, "hints": {"strategy": "committee"}}
    answer = client.post("/api/complete:stream", json=body)

    messages = [json.loads(line) for line in answer.text.splitlines() if line]
    assert any("delta" in m for m in messages)
    assert not any("final" in m for m in messages)
    assert messages[-1]["error"]["details"][0]["reason"] == "UPSTREAM_FAILED"


@pytest.mark.parametrize("strategy", ["committee", "clone_dispatch"])
def test_a_synthesis_that_fails_before_its_first_token_falls_back_to_what_is_there(
    client: httpx.Client, strategy: str
) -> None:
    answer = ask(client, "panel_mute", strategy, stream=True)

    assert answer.text.rstrip().endswith("data: [DONE]")
    chunks = chunks_of(answer)
    assert len(words_of(chunks)) == 1
    assert any("merger: panel_mute failed" in d for d in chunks[-1]["hivemind"]["degraded"])


def test_a_client_that_leaves_in_the_synthesis_stops_it_within_a_second(
    client: httpx.Client, upstream: Upstream
) -> None:
    upstream.forget()
    body = {
        "model": "patient_panel_hangs_mid", "messages": MESSAGES, "stream": True, "user": "merge-leaver",
        "hivemind": {"hints": {"strategy": "committee"}},
    }  # fmt: skip
    with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        for line in answer.iter_lines():
            if "Once" in line:
                break
        left = time.monotonic()

    seen = until(lambda: [s for s in upstream.seen() if s["closed_early_after_s"]], what="the merger's call ends")
    assert len(seen) == 1
    assert time.monotonic() - left < 1.5

    def cancelled() -> dict[str, Any] | None:
        found = client.get("/api/requests").json()["requests"]
        return next((r for r in found if r["session"] == "merge-leaver" and r["outcome"] == "CANCELLED"), None)

    record = until(cancelled, what="the request is recorded as cancelled")
    assert record is not None
    assert record["calls"][-1]["usage"]["estimated"] is True
    assert int(record["cost_micros"]) == sum(int(c["cost_micros"]) for c in record["calls"])


@pytest.mark.parametrize(("alias", "words"), [("panel_refuses", "failed"), ("panel_hangs", "too slow")])
def test_a_committee_goes_on_without_one_of_three(client: httpx.Client, alias: str, words: str) -> None:
    answer = ask(client, alias, "committee")

    assert answer.status_code == 200, answer.text
    degraded = answer.json()["hivemind"]["degraded"]
    assert any("committee: call" in d and words in d for d in degraded), degraded


@pytest.mark.parametrize(("alias", "answered_by", "calls"), [("sure", "sure", 1), ("unsure", "unsure", 2)])
def test_a_cascade_asks_on_only_where_the_first_model_is_unsure(
    tmp_path_factory: pytest.TempPathFactory, upstream: Upstream, alias: str, answered_by: str, calls: int
) -> None:
    config = courier_and_master(upstream, courier=alias)
    with running_mesh(tmp_path_factory.mktemp("cascade"), config) as mesh, mesh.client() as client:
        answer = ask(client, "auto", "cascade")

        assert answer.status_code == 200, answer.text
        record = record_of(client, answer.headers["x-request-id"])
        assert len(record["calls"]) == calls
        text = answer.json()["choices"][0]["message"]["content"]
        assert ("41" in text) == (answered_by == "sure")


def test_a_client_that_leaves_stops_every_call_within_a_second(
    client: httpx.Client, upstream: Upstream, mesh: RunningMesh
) -> None:
    upstream.forget()
    impatient = httpx.Client(base_url=mesh.base_url, timeout=0.5)
    with pytest.raises(httpx.ReadTimeout):
        ask(impatient, "patient_hang", "vote")

    def all_closed() -> bool:
        seen = [s for s in upstream.seen() if s["model"] == "hang"]
        return len(seen) == 5 and all(s["closed_early_after_s"] is not None for s in seen)

    until(all_closed, within_s=3, what="the model server sees all five calls end")
    assert all(s["closed_early_after_s"] < 1.6 for s in upstream.seen() if s["model"] == "hang")


@pytest.mark.parametrize("strategy", MANY)
def test_no_strategy_costs_more_than_was_set_aside(client: httpx.Client, strategy: str) -> None:
    decided = client.post("/api/route", json={"model": "panel", "messages": MESSAGES, "hints": {"strategy": strategy}})
    answer = ask(client, "panel", strategy)

    record = record_of(client, answer.headers["x-request-id"])
    assert 0 < int(record["cost_micros"]) <= int(decided.json()["candidates"][0]["cost_micros"])


def test_a_client_that_wants_few_tokens_does_not_cut_the_judge_short(client: httpx.Client, upstream: Upstream) -> None:
    upstream.forget()
    assert ask(client, "panel", "committee", max_tokens=5).status_code == 200

    limits: dict[bool, set[int]] = {}
    for seen in upstream.seen():
        limits.setdefault(b"compare two answers" in seen["body"], set()).add(json.loads(seen["body"])["max_tokens"])
    assert limits == {True: {256}, False: {5}}


def test_a_limit_below_the_upper_cost_is_refused_with_the_field(client: httpx.Client) -> None:
    answer = ask(client, "panel", "committee", hints={"max_cost_micros": 5})

    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "hints.max_cost_micros"


def test_tools_cannot_be_combined_with_several_calls(client: httpx.Client) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    answer = ask(client, "panel", "debate", tools=[tool])

    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "hints.strategy"


def test_a_hanging_strategy_does_not_hold_up_others(client: httpx.Client, mesh: RunningMesh) -> None:
    waiting = threading.Thread(target=lambda: ask(mesh.client(), "panel_hangs", "vote"))
    waiting.start()
    began = time.monotonic()
    assert client.post("/v1/chat/completions", json={"model": "ok", "messages": MESSAGES}).status_code == 200
    assert time.monotonic() - began < 2
    waiting.join()
