"""Envoy by itself: a real one, with closed ports behind it and one small HTTP server as the Router's edge."""

import json
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from hivemind.envoy.config import SERVICE_OF, Endpoint, EnvoyPlan, envoy_binary, envoy_command, render_config
from tests.support.waiting import until

MAX_BODY = 1000


class Edge(BaseHTTPRequestHandler):
    """Answers /readyz, and says how many bytes a body had."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.answer({"ready": True})

    def do_POST(self) -> None:
        self.answer({"bytes": len(self.rfile.read(int(self.headers["content-length"])))})

    def answer(self, body: object) -> None:
        raw = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_: object) -> None:
        pass


@dataclass(frozen=True)
class RunningEnvoy:
    client: httpx.Client
    admin_port: int
    access_log: Path


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


@contextmanager
def edge() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Edge) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.fixture(scope="module")
def envoy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningEnvoy]:
    folder = tmp_path_factory.mktemp("envoy")
    with edge() as edge_port:
        plan = EnvoyPlan(
            host="127.0.0.1",
            port=free_port(),
            admin_port=free_port(),
            endpoints={name: [Endpoint("127.0.0.1", free_port())] for name in SERVICE_OF},
            router_http=[Endpoint("127.0.0.1", edge_port)],
            access_log=folder / "access.log",
            max_body=MAX_BODY,
        )
        config = folder / "envoy.json"
        config.write_text(render_config(plan))
        with subprocess.Popen(envoy_command(envoy_binary(), config), stderr=subprocess.DEVNULL) as process:
            client = httpx.Client(base_url=f"http://127.0.0.1:{plan.port}", timeout=10)
            try:
                until(lambda: client.get("/readyz").status_code == 200, within_s=20, what="Envoy passes /readyz on")
                yield RunningEnvoy(client, plan.admin_port, plan.access_log)
            finally:
                client.close()
                process.terminate()


@pytest.mark.parametrize(("size", "reason"), [(MAX_BODY, "PEER_UNAVAILABLE"), (MAX_BODY + 1, "REQUEST_TOO_LARGE")])
def test_the_body_limit_of_the_api_is_exact(envoy: RunningEnvoy, size: int, reason: str) -> None:
    answer = envoy.client.post("/api/complete", content=b'{"model": "%b"}' % (b"x" * (size - 13)))

    assert answer.json()["details"][0]["reason"] == reason
    assert answer.status_code == (413 if reason == "REQUEST_TOO_LARGE" else 503)
    assert answer.headers["x-request-id"]


def test_the_openai_surface_is_passed_on_as_it_came(envoy: RunningEnvoy) -> None:
    answer = envoy.client.post("/v1/chat/completions", content=b"x" * (3 * MAX_BODY))

    assert answer.json() == {"bytes": 3 * MAX_BODY}


def test_a_server_that_is_away_is_told_as_a_status_with_its_reason(envoy: RunningEnvoy) -> None:
    answer = envoy.client.get("/api/models")

    assert answer.status_code == 503
    assert answer.json()["details"][0]["reason"] == "PEER_UNAVAILABLE"


def test_a_grpc_client_gets_a_grpc_status_when_a_server_is_away(envoy: RunningEnvoy) -> None:
    answer = envoy.client.post(
        "/hivemind.v1.RouterService/ListModels", content=b"\0\0\0\0\0", headers={"content-type": "application/grpc"}
    )

    assert answer.headers["grpc-status"] == "14"


def test_a_path_that_nobody_serves_is_a_404_with_a_request_id(envoy: RunningEnvoy) -> None:
    answer = envoy.client.get("/nothing")

    assert answer.status_code == 404
    assert answer.json()["details"][0]["metadata"]["request_id"] == answer.headers["x-request-id"]


def test_healthz_is_answered_by_envoy_itself(envoy: RunningEnvoy) -> None:
    assert envoy.client.get("/healthz").status_code == 200


def test_admin_listens_on_loopback_only(envoy: RunningEnvoy) -> None:
    dump = httpx.get(f"http://127.0.0.1:{envoy.admin_port}/config_dump?mask=bootstrap").json()
    address = dump["configs"][0]["bootstrap"]["admin"]["address"]["socket_address"]["address"]

    assert address == "127.0.0.1"


def test_the_access_log_is_json_with_the_request_id(envoy: RunningEnvoy) -> None:
    request_id = envoy.client.get("/healthz").headers["x-request-id"]

    def logged() -> bool:
        lines = [json.loads(line) for line in envoy.access_log.read_text().splitlines()]
        return any(request_id in line.values() for line in lines)

    until(logged, within_s=15, what="the request stands in the access log")
