"""FAULTS 1, 2, 3, 6 and 39: processes of the mesh end, stop or come back under load."""

import asyncio
import os
import signal

import httpx
import pytest

from tests.support.load import run_load
from tests.support.mesh import RunningMesh
from tests.support.waiting import until


@pytest.fixture(autouse=True)
def _whole_mesh(mesh: RunningMesh) -> None:
    mesh.wait_ready()


@pytest.mark.parametrize(("path", "model"), [("/v1/chat/completions", "ok"), ("/api/complete", "ok")])
async def test_sigterm_of_one_router_under_load_fails_no_request(mesh: RunningMesh, path: str, model: str) -> None:
    first = mesh.server("router")[0]

    async def drain() -> None:
        await asyncio.sleep(1.0)
        os.kill(first.pid, signal.SIGTERM)

    load = await run_load(mesh.base_url, model=model, path=path, seconds=6, concurrency=8, meanwhile=drain)

    assert load.failed == 0, (load.outcomes, load.failures[:3])
    assert load.outcomes[200] > 100
    until(lambda: not first.is_running() or first.status() == "zombie", what="the drained Router ends")


async def test_kill_9_of_one_router_fails_only_what_it_had_in_hand(mesh: RunningMesh) -> None:
    first = mesh.server("router")[0]
    concurrency = 8

    async def kill() -> None:
        await asyncio.sleep(1.0)
        os.kill(first.pid, signal.SIGKILL)

    load = await run_load(mesh.base_url, model="ok", seconds=5, concurrency=concurrency, meanwhile=kill)

    assert load.failed <= concurrency, (load.outcomes, load.failures[:3])
    assert load.outcomes[200] > 100
    until(lambda: len(mesh.server("router")) == 2, within_s=5, what="the supervisor starts it again")


async def test_a_stopped_router_is_taken_out(mesh: RunningMesh) -> None:
    first = mesh.server("router")[0]

    async def stop() -> None:
        await asyncio.sleep(1.0)
        os.kill(first.pid, signal.SIGSTOP)
        await asyncio.sleep(5.0)
        os.kill(first.pid, signal.SIGCONT)

    load = await run_load(mesh.base_url, model="ok", seconds=9, concurrency=8, meanwhile=stop)

    total = sum(load.outcomes.values())
    assert load.failed < 0.01 * total, (load.outcomes, load.failures[:3])
    assert total > 200


async def test_completions_go_on_while_redis_is_gone_and_no_spend_is_lost(mesh: RunningMesh) -> None:
    def requests_booked() -> int:
        rows = httpx.get(f"{mesh.base_url}/api/spend").json()["rows"]
        return sum(int(r["requests"]) for r in rows if r["tenant"] == "during-outage")

    async def kill() -> None:
        await asyncio.sleep(0.5)
        mesh.redis().kill()

    headers = {"x-hivemind-tenant": "during-outage"}
    load = await run_load(mesh.base_url, model="odd_finish", seconds=4, concurrency=4, meanwhile=kill, headers=headers)

    assert load.failed == 0, (load.outcomes, load.failures[:3])
    until(lambda: requests_booked() == load.outcomes[200], within_s=15, what="all spend is booked")


def test_the_governors_word_survives_kill_9_of_it_and_of_redis(mesh: RunningMesh, client: httpx.Client) -> None:
    assert client.post("/api/config/governor", json={"enabled": False, "quality_dial": 0.25}).status_code == 200
    before = client.get("/api/config/governor").json()

    mesh.kill("governor")
    mesh.redis().kill()

    def after() -> dict[str, object]:
        answer = client.get("/api/config/governor")
        return answer.json() if answer.status_code == 200 else {}

    assert until(after, within_s=20, what="the Governor answers again") == before
    assert client.post("/api/config/governor", json={"enabled": True, "quality_dial": 0.5}).json()["enabled"] is True


def test_clients_reconnect_after_envoy_restarts_and_nothing_stored_is_lost(
    mesh: RunningMesh, client: httpx.Client
) -> None:
    answer = client.post("/v1/chat/completions", json={"model": "ok", "messages": [{"role": "user", "content": "hi"}]})
    request_id = answer.headers["x-request-id"]
    assert client.get(f"/api/requests/{request_id}").status_code == 200

    envoys = mesh.processes("envoy/_bin/envoy")
    assert len(envoys) == 1
    envoys[0].kill()

    def found() -> bool:
        return client.get(f"/api/requests/{request_id}").status_code == 200

    assert until(found, within_s=15, what="Envoy is back")


@pytest.mark.parametrize("server", ["governor", "arbiter", "adapter_registry", "trainer", "orchestrator"])
def test_requests_are_answered_while_another_server_is_down(
    mesh: RunningMesh, client: httpx.Client, server: str
) -> None:
    pids = {p.pid for p in mesh.server(server)}
    mesh.kill(server)

    answer = client.post(
        "/v1/chat/completions", json={"model": "odd_finish", "messages": [{"role": "user", "content": "x"}]}
    )

    assert answer.status_code == 200, answer.text
    until(lambda: {p.pid for p in mesh.server(server)} - pids, within_s=3, what="the supervisor starts it again")
