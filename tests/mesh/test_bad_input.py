"""FAULTS 17, 18, 43 and 44: what a client may send by mistake or malice, through Envoy."""

import json
import socket
from typing import Any

import httpx
import pytest

from tests.support.mesh import RunningMesh

CHAT = "/v1/chat/completions"
GOVERNOR = "/api/config/governor"
GOOD = {"model": "odd_finish", "messages": [{"role": "user", "content": "hi"}]}
LIMIT = 16 * 1024 * 1024


def good(**changes: Any) -> dict[str, Any]:
    return {**GOOD, **changes}


def message(**changes: Any) -> dict[str, Any]:
    return good(messages=[{"role": "user", "content": "hi", **changes}])


def assert_openai_error(answer: httpx.Response, status: int, param: str | None = None) -> None:
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert body["error"]["message"]
    assert body["error"]["type"]
    assert body["request_id"] == answer.headers["x-request-id"]
    if param is not None:
        assert body["error"]["param"] == param


def assert_status_error(answer: httpx.Response, status: int, field: str | None = None) -> None:
    assert answer.status_code == status, answer.text
    body = answer.json()
    info = body["details"][0]
    assert info["domain"] == "hivemind.v1"
    assert info["reason"]
    assert info["metadata"]["request_id"] == answer.headers["x-request-id"]
    if field is not None:
        assert [v["field"] for v in body["details"][1]["field_violations"]] == [field]


@pytest.fixture(autouse=True)
def _still_answers(client: httpx.Client) -> Any:
    yield
    assert client.post(CHAT, json=GOOD).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b'{"messages": [{"role": "user", "content": "\xff\xfe"}]}',
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"messages": [{"role": "user", "content": "a\\u0000b"}]}',
        b'{"messages": [{"role": "user", "content": "a\x00b"}]}',
        b'{"messages": ' + b"[" * 30000 + b"]" * 30000 + b"}",
        b'{"messages": [{"role": "user", "content": "x"}], "seed": NaN}',
        b'{"model": "courier", "model": "ok", "messages": [{"role": "user", "content": "x"}]}',
        b'{"messages": [{"role": "user", "content": "x"}], "temperature": 1e999}',
        b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": 99999999999999999999999}',
    ],
    ids=lambda b: repr(b[:40]),
)
def test_a_body_that_cannot_be_read_is_a_400_on_v1(client: httpx.Client, body: bytes) -> None:
    assert_openai_error(client.post(CHAT, content=body), 400)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'{"messages": [{"role": "user", "content": "\xff\xfe"}]}',
        b'{"messages": [{"role": "user", "content": "a\\u0000b"}]}',
        b'{"messages": ' + b"[" * 30000 + b"]" * 30000 + b"}",
        b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": 99999999999999999999999}',
        b'{"messages": [{"role": "user", "content": "x"}], "temperature": "NaN"}',
        b'{"messages": "x"}',
        b'{"messages": [{"role": "user", "content": {"a": 1}}]}',
    ],
    ids=lambda b: repr(b[:40]),
)
def test_a_body_that_cannot_be_read_is_a_400_on_api(client: httpx.Client, body: bytes) -> None:
    assert_status_error(client.post("/api/complete", content=body), 400)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"model": "ok"}, "messages"),
        (good(messages=[]), "messages"),
        (good(messages="hi"), "messages"),
        (good(messages=["hi"]), "messages[0]"),
        (message(role="king"), "messages[0].role"),
        (message(role=7), "messages[0].role"),
        (message(content=7), "messages[0].content"),
        (message(content=[7]), "messages[0].content[0]"),
        (good(model=7), "model"),
        (good(model="nonsense"), "model"),
        (good(model="courier:no-such-adapter"), "model"),
        (good(stream="yes"), "stream"),
        (good(temperature="hot"), "temperature"),
        (good(temperature=9), "temperature"),
        (good(max_tokens=0), "max_tokens"),
        (good(max_tokens=1.5), "max_tokens"),
        (good(n="two"), "n"),
        (good(stream_options=[]), "stream_options"),
        (good(user=5), "user"),
        (good(hivemind=[]), "hivemind"),
        (good(hivemind={"hints": {"strategy": "nonsense"}}), "hints.strategy"),
        (good(hivemind={"hints": {"quality_dial": 3}}), "hints.quality_dial"),
        (good(hivemind={"hints": {"max_cost_micros": "many"}}), "hints.max_cost_micros"),
        (good(hivemind={"tenant": "A B"}), "tenant"),
    ],
    ids=str,
)
def test_a_wrong_field_is_named_on_v1(client: httpx.Client, body: dict[str, Any], param: str) -> None:
    assert_openai_error(client.post(CHAT, json=body), 400, param)


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/api/complete", {}, "messages"),
        ("/api/complete", {"messages": [{"content": "x"}]}, "messages[0].role"),
        ("/api/complete", {"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
        ("/api/complete", good(model="nonsense"), "model"),
        ("/api/complete", good(temperature=-1), "temperature"),
        ("/api/complete", good(on_budget=9), "on_budget"),
        ("/api/complete", good(tenant="A B"), "tenant"),
        ("/api/complete", good(hints={"strategy": "nonsense"}), "hints.strategy"),
        ("/api/complete", good(hints={"max_cost_micros": -1}), "hints.max_cost_micros"),
        ("/api/complete", good(model="ok", hints={"max_cost_micros": 1}), "hints.max_cost_micros"),
        ("/api/config/governor", {"quality_dial": 7}, "quality_dial"),
        (GOVERNOR, {"budgets": [{"tenant": "t", "period": "DAY", "limit_micros": -1}]}, "budgets[0].limit_micros"),
        (GOVERNOR, {"budgets": [{"tenant": "t"}]}, "budgets[0].period"),
        (GOVERNOR, {"rates": [{"tenant": "t", "requests_per_minute": -4}]}, "rates[0].requests_per_minute"),
    ],
    ids=str,
)  # fmt: skip
def test_a_wrong_field_is_named_on_api(client: httpx.Client, path: str, body: dict[str, Any], field: str) -> None:
    assert_status_error(client.post(path, json=body), 400, field)


def test_nonsense_for_the_governor_leaves_the_old_configuration(client: httpx.Client) -> None:
    before = client.get("/api/config/governor").json()

    assert_status_error(client.post("/api/config/governor", json={"enabled": False, "quality_dial": 7}), 400)

    assert client.get("/api/config/governor").json() == before


@pytest.mark.parametrize("body", [{}, {"nonsense": 1}, {"enabled": None}])
def test_a_mutation_without_a_known_field_is_a_400(client: httpx.Client, body: dict[str, Any]) -> None:
    assert_status_error(client.post("/api/config/governor", json=body), 400)


@pytest.mark.parametrize(("path", "v1"), [(CHAT, True), ("/api/complete", False)])
def test_the_limit_of_the_body_is_exact(client: httpx.Client, path: str, v1: bool) -> None:
    padding = {"role": "user", "content": ""}
    empty = json.dumps({"model": "odd_finish", "messages": [padding]})
    padding["content"] = "x" * (LIMIT - len(empty))
    body = json.dumps({"model": "odd_finish", "messages": [padding]})
    assert len(body) == LIMIT

    fits = client.post(path, content=body)
    too_large = client.post(path, content=body + " ")

    assert fits.status_code == 400, fits.text  # read whole, and then refused for the model's context length
    assert "context" in fits.text
    (assert_openai_error if v1 else assert_status_error)(too_large, 413)


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", CHAT), ("DELETE", "/api/models"), ("POST", "/api/nope"), ("GET", "/v1/nope"), ("GET", "/nope")],
)
def test_what_does_not_exist_is_a_404_with_json(client: httpx.Client, method: str, path: str) -> None:
    answer = client.request(method, path)

    (assert_openai_error if path.startswith("/v1") else assert_status_error)(answer, 404)


def test_an_unknown_query_parameter_is_a_400(client: httpx.Client) -> None:
    assert_status_error(client.get("/api/models?nope=1"), 400)


def test_bytes_that_are_no_text_in_a_path_are_a_400(client: httpx.Client) -> None:
    assert_status_error(client.get("/api/requests/%ff"), 400)


def test_an_upstream_url_in_a_request_is_not_followed(client: httpx.Client) -> None:
    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.settimeout(0.5)
        url = f"http://127.0.0.1:{trap.getsockname()[1]}/v1"
        answer = client.post(CHAT, json=good(base_url=url, api_base=url, hivemind={"endpoint": url}))
        assert client.post(CHAT, json=good(model=url)).status_code == 400
        with pytest.raises(TimeoutError):
            trap.accept()

    assert answer.status_code == 200


def test_raw_nonsense_on_the_port_is_refused(mesh: RunningMesh) -> None:
    with socket.create_connection(("127.0.0.1", mesh.plan["port"]), timeout=10) as raw:
        raw.sendall(b"\x00\x01\x02 nonsense\r\n\r\n")
        assert raw.recv(1024)[:12] in (b"HTTP/1.1 400", b"")
