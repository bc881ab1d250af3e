"""FAULTS 11 to 16: what model servers and clients can do to a completion, seen through Envoy."""

import json
import socket
import time
from typing import Any

import httpx
import pytest

from tests.support.mesh import RunningMesh, Upstream
from tests.support.scripted_upstream import ANSWER, FAITHFUL
from tests.support.waiting import until

MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]


def ask(client: httpx.Client, model: str, **fields: Any) -> httpx.Response:
    return client.post("/v1/chat/completions", json={"model": model, "messages": MESSAGES, **fields})


def events_of(answer: httpx.Response) -> list[str]:
    return [line.removeprefix("data: ") for line in answer.text.splitlines() if line]


def record_of(client: httpx.Client, answer: httpx.Response) -> dict[str, Any]:
    record: dict[str, Any] = client.get(f"/api/requests/{answer.headers['x-request-id']}").json()
    return record


@pytest.mark.parametrize("alias", ["rescued_500", "rescued_503", "rescued_hang", "rescued_429", "rescued_refused"])
@pytest.mark.parametrize("stream", [False, True])
def test_another_endpoint_answers_before_the_first_byte(client: httpx.Client, alias: str, stream: bool) -> None:
    for _ in range(2):  # both endpoints have their turn at being first
        answer = ask(client, alias, stream=stream)

        assert answer.status_code == 200, answer.text
        assert "Paris" in answer.text
        record = record_of(client, answer)
        assert record["outcome"] == "OK"
        assert record["calls"][-1]["error"] == ""


@pytest.mark.parametrize("alias", ["first_429", "first_500", "first_503"])
def test_the_only_endpoint_is_tried_again_and_the_reason_is_recorded(client: httpx.Client, alias: str) -> None:
    answer = ask(client, alias)

    assert answer.status_code == 200, answer.text
    calls = record_of(client, answer)["calls"]
    assert [bool(c["error"]) for c in calls] == [True, False]
    assert alias.removeprefix("first_") in calls[0]["error"]


@pytest.mark.parametrize(
    ("alias", "word"),
    [
        ("error_500", "500"),
        ("error_503", "503"),
        ("rate_limited", "429"),
        ("unauthorized", "401"),
        ("refused", "refuses"),
        ("no_such_host", "resolved"),
        ("bad_tls", "TLS"),
        ("html", "JSON"),
        ("truncated", "middle"),
        ("malformed", "JSON"),
    ],
)
def test_a_named_alias_that_fails_is_a_502_with_the_reason(client: httpx.Client, alias: str, word: str) -> None:
    answer = ask(client, alias)

    assert answer.status_code == 502, answer.text
    error = answer.json()["error"]
    assert error["reason"] == "UPSTREAM_FAILED"
    assert word in error["message"]
    assert record_of(client, answer)["outcome"] == "UPSTREAM_FAILED"


def test_the_same_failure_is_a_502_on_api_too(client: httpx.Client) -> None:
    answer = client.post("/api/complete", json={"messages": MESSAGES, "model": "error_500"})

    assert answer.status_code == 502
    assert answer.json()["details"][0]["reason"] == "UPSTREAM_FAILED"
    assert "x-hivemind-http-status" not in answer.headers


def test_a_long_retry_after_is_told_to_the_client_and_not_waited_for(client: httpx.Client) -> None:
    began = time.monotonic()
    answer = ask(client, "long_retry")

    assert answer.status_code == 502
    assert answer.headers["retry-after"] == "60"
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("stream", [False, True])
def test_a_server_that_hangs_is_given_up(client: httpx.Client, stream: bool) -> None:
    began = time.monotonic()
    answer = ask(client, "hang", stream=stream)

    assert answer.status_code == 502
    assert "time" in answer.json()["error"]["message"]
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    "alias",
    [
        "hang_mid",
        "drip",
        "truncated",
        "no_done",
        "no_finish",
        "malformed",
        "malformed_at_once",
        "huge_event",
        "error_in_band",
    ],
)
def test_a_broken_stream_ends_with_an_error_event_and_never_with_done(client: httpx.Client, alias: str) -> None:
    answer = ask(client, alias, stream=True)

    events = events_of(answer)
    assert "[DONE]" not in events
    error = json.loads(events[-1])["error"]
    assert error["reason"] == "UPSTREAM_FAILED"
    assert "Once" in events[0]
    assert record_of(client, answer)["outcome"] == "UPSTREAM_FAILED"


def test_a_broken_stream_ends_with_an_error_line_on_api(client: httpx.Client) -> None:
    answer = client.post("/api/complete:stream", json={"messages": MESSAGES, "model": "no_done"})

    lines = [json.loads(line) for line in answer.text.splitlines() if line]
    assert "final" not in lines[-1]
    assert lines[-1]["error"]["details"][0]["reason"] == "UPSTREAM_FAILED"


def test_what_a_model_server_says_about_the_request_reaches_the_client(client: httpx.Client) -> None:
    answer = ask(client, "bad_request")

    assert answer.status_code == 400
    assert answer.json() == {"error": {"message": "scripted 400", "type": "scripted", "code": None}}


@pytest.mark.parametrize(
    ("alias", "finish", "content"),
    [("null_content", "stop", None), ("odd_finish", "because_i_say_so", ANSWER), ("tool_call", "tool_calls", None)],
)
def test_odd_answers_are_passed_on_faithfully(
    client: httpx.Client, alias: str, finish: str, content: str | None
) -> None:
    choice = ask(client, alias).json()["choices"][0]

    assert choice["finish_reason"] == finish
    assert choice["message"]["content"] == content


def test_empty_choices_are_passed_on(client: httpx.Client) -> None:
    assert ask(client, "empty_choices").json()["choices"] == []
    assert client.post("/api/complete", json={"messages": MESSAGES, "model": "empty_choices"}).status_code == 200


def test_missing_usage_is_estimated_and_marked_so(client: httpx.Client) -> None:
    usage = ask(client, "no_usage").json()["hivemind"]["usage"]

    assert usage["estimated"] is True
    assert usage["completion_tokens"] > 0


def test_the_answers_bytes_are_kept_but_for_the_hivemind_object(client: httpx.Client) -> None:
    raw = ask(client, "faithful").content

    before, _, _ = FAITHFUL.rpartition(b"}")
    assert raw.startswith(before)
    assert raw[len(before) :].startswith(b',"hivemind":{')
    assert raw.endswith(b"}\n")


def test_the_requests_bytes_are_kept_but_for_model_hints_and_usage(client: httpx.Client, upstream: Upstream) -> None:
    upstream.forget()
    body = (
        b'{ "seed" : 1e0, "zeta":{"b":1.0,"a":[ 12345678901234567890 ]},'
        b'"messages":[{"content":"caf\\u00e9","role":"user"}],'
        b'\n "model" : "ok", "hivemind":{"hints":{"domain":"geo"}}, "stop":["\\n"],"stream":true , "temperature":0.70}'
    )
    client.post("/v1/chat/completions", content=body.replace(b"1e0", b"1"))

    sent = upstream.seen()[-1]["body"]
    expected = body.replace(b"1e0", b"1").replace(b'"hivemind":{"hints":{"domain":"geo"}}, ', b"")
    assert sent == expected[:-1] + b',"stream_options":{"include_usage":true}}'


def test_usage_that_the_client_did_not_ask_for_is_withheld(client: httpx.Client) -> None:
    events = [json.loads(e) for e in events_of(ask(client, "ok", stream=True))[:-1]]
    asked = [
        json.loads(e) for e in events_of(ask(client, "ok", stream=True, stream_options={"include_usage": True}))[:-1]
    ]

    assert [e for e in events if "usage" in e] == []
    assert len([e for e in asked if "usage" in e]) == 1
    assert events[-1]["hivemind"]["usage"]["total_tokens"] == 150


def test_auto_falls_back_when_the_courier_is_gone(mesh: RunningMesh, client: httpx.Client) -> None:
    models = {m["id"]: m for m in client.get("/api/models").json()["models"]}
    assert models["courier"]["health"] in ("HEALTHY", "DEGRADED", "UNHEALTHY")

    mesh.kill("engine")
    answer = ask(client, "courier", max_tokens=1)

    assert answer.status_code in (200, 502)  # the supervisor may be quicker
    assert until(lambda: ask(client, "courier", max_tokens=1).status_code == 200, within_s=30)


def test_a_client_that_leaves_cancels_the_call_within_a_second(
    mesh: RunningMesh, client: httpx.Client, upstream: Upstream
) -> None:
    for script, stream in (("patient_hang_mid", True), ("patient_hang", False)):
        upstream.forget()
        with socket.create_connection(("127.0.0.1", mesh.plan["port"])) as raw:
            body = json.dumps({"model": script, "messages": MESSAGES, "stream": stream, "user": f"leaver-{script}"})
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: mesh\r\nContent-Length: {len(body)}\r\n\r\n"
            raw.sendall((head + body).encode())
            until(lambda: upstream.seen(), what="the model server is called")
            if stream:
                received = b""
                while b"Once" not in received:
                    received += raw.recv(65536)
        seen = until(lambda: [s for s in upstream.seen() if s["closed_early_after_s"]], what="the call ends")
        assert seen[0]["closed_early_after_s"] < 1.0

        def cancelled(name: str = f"leaver-{script}") -> list[dict[str, Any]]:
            found = client.get("/api/requests").json()["requests"]
            return [r for r in found if r["session"] == name and r["outcome"] == "CANCELLED"]

        record = until(cancelled, what="the request is recorded as cancelled")[0]
        assert record["usage"]["prompt_tokens"] > 0
        assert record["usage"]["estimated"] is True


def test_a_client_that_reads_slowly_holds_up_nobody_and_fills_no_memory(
    mesh: RunningMesh, client: httpx.Client
) -> None:
    routers = mesh.server("router")
    before = [p.memory_info().rss for p in routers]
    readers = []
    body = json.dumps({"model": "flood", "messages": MESSAGES, "stream": True})
    for _ in range(4):
        raw = socket.create_connection(("127.0.0.1", mesh.plan["port"]))
        raw.sendall(
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: m\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
        )
        assert raw.recv(1024)
        readers.append(raw)
    try:
        for _ in range(20):
            assert ask(client, "ok").status_code == 200
        grown = [p.memory_info().rss - b for p, b in zip(routers, before, strict=True)]
        assert sum(grown) < 64 << 20
    finally:
        for raw in readers:
            raw.close()
