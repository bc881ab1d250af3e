"""The server as a process: the foundational adapter at start, and kill -9 of one of two registries."""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import pytest

from hivemind.servers.adapter_registry.base_model import BaseModel
from hivemind.v1 import adapter_registry_pb2 as pb
from hivemind.v1 import adapter_registry_pb2_grpc as rpc
from tests.support.fake_vllm import fake_vllm
from tests.support.peft import CONFIG, write_adapter
from tests.support.redis_process import RedisProcess
from tests.support.registry import ROLE, info_of
from tests.support.waiting import until


@dataclass
class Server:
    """A registry process."""

    process: subprocess.Popen[bytes]
    port: int
    metrics_port: int
    log: Path

    def events(self, name: str) -> list[dict[str, Any]]:
        """Its log lines of an event."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == name]

    @property
    def ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/readyz", timeout=1) as answer:
                return bool(answer.status == 200)
        except urllib.error.URLError:
            return False


@contextmanager
def server(redis: RedisProcess, home: Path, name: str = "registry", **settings: str) -> Iterator[Server]:
    ports = []
    for _ in range(2):
        with socket.create_server(("127.0.0.1", 0)) as free:
            ports.append(free.getsockname()[1])
    clean = {k: v for k, v in os.environ.items() if not k.startswith("HIVEMIND_")}
    environment = {
        **clean, "HIVEMIND_HOME": str(home), "HIVEMIND_CONFIG": str(home / "hivemind.toml"), "REDIS_URL": redis.url,
        "HIVEMIND_GRPC_PORT": str(ports[0]), "HIVEMIND_METRICS_PORT": str(ports[1]), **settings,
    }  # fmt: skip
    log = home / f"{name}.log"
    home.mkdir(exist_ok=True)
    with log.open("wb") as output:
        command = [sys.executable, "-m", "hivemind.servers.adapter_registry"]
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    running = Server(process, ports[0], ports[1], log)
    try:
        until(lambda: running.ready, within_s=20, what=f"{name} is ready")
        yield running
    finally:
        process.kill()
        process.wait()


def foundational(home: Path, base: BaseModel) -> Path:
    return write_adapter(home / "adapters" / "foundational" / "champion_v1", base.shapes, seed=1)


async def state_of(running: Server) -> pb.RoleState:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel:
        found = await rpc.AdapterRegistryServiceStub(channel).GetState(pb.GetStateRequest(role=ROLE))
        return found.roles[0]


async def test_the_foundational_adapter_is_activated_once(
    empty_redis: RedisProcess, tmp_path: Path, base: BaseModel
) -> None:
    foundational(tmp_path, base)
    with server(empty_redis, tmp_path) as first, server(empty_redis, tmp_path, "other") as second:
        until(lambda: first.events("foundational_adapter_activated") or second.events("foundational_adapter_activated"))
        done = "foundational_adapter_known", "foundational_adapter_left_alone", "foundational_adapter_activated"
        until(lambda: all(any(s.events(e) for e in done) for s in (first, second)))
        champion = (await state_of(first)).champion
        async with grpc.aio.insecure_channel(f"127.0.0.1:{first.port}") as channel:
            stub = rpc.AdapterRegistryServiceStub(channel)
            await stub.RollbackAdapter(pb.RollbackAdapterRequest(role=ROLE, reason="an operator"))
    with server(empty_redis, tmp_path) as again:
        known = until(lambda: again.events("foundational_adapter_known"))
        state = await state_of(again)

    assert champion.startswith("implementer-v0000")
    assert known[0]["state"] == "RETIRED"
    assert state.champion == ""  # who rolled it back is not overruled by a restart
    assert len(list((tmp_path / "adapters" / ROLE).iterdir())) == 1


def test_without_a_foundational_adapter_one_line_says_so(empty_redis: RedisProcess, tmp_path: Path) -> None:
    with server(empty_redis, tmp_path) as running:
        lines = until(lambda: running.events("no_foundational_adapter"))

    assert len(lines) == 1
    assert lines[0]["path"] == "foundational/champion_v1"


def test_a_broken_foundational_adapter_is_reported_and_all_else_works(
    empty_redis: RedisProcess, tmp_path: Path, base: BaseModel
) -> None:
    (foundational(tmp_path, base) / CONFIG).write_text("{")
    with server(empty_redis, tmp_path) as running:
        lines = until(lambda: running.events("foundational_adapter_refused"))
        state = asyncio.run(state_of(running))

    assert "adapter_config.json" in lines[0]["why"]
    assert state.champion == ""


async def test_a_replica_that_the_configuration_names_later_is_loaded_without_a_restart(
    empty_redis: RedisProcess, tmp_path: Path, base: BaseModel
) -> None:
    foundational(tmp_path, base)
    config = tmp_path / "hivemind.toml"
    table = (
        '[models.{0}]\nrole = "{1}"\nadapters = "vllm"\n[[models.{0}.endpoints]]\nbase_url = "{2}"\nmodel = "base"\n'
    )
    async with fake_vllm() as fake:
        with server(empty_redis, tmp_path, HIVEMIND_CATALOGUE_POLL_S="0.05") as running:
            await asyncio.to_thread(until, lambda: running.events("foundational_adapter_activated"), within_s=30)
            config.write_text(
                table.format("own", ROLE, fake.endpoint.base_url)
                + table.format("second", "tester", fake.endpoint.base_url)
            )
            await asyncio.to_thread(until, lambda: fake.loads, within_s=30, what="the new replica is loaded")
            champion = (await state_of(running)).champion
            async with grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel:
                watch = rpc.AdapterRegistryServiceStub(channel).WatchState(
                    pb.WatchStateRequest(watcher="test"), timeout=30
                )
                while {r.role for r in (await watch.read()).state.roles} != {ROLE, "tester"}:
                    pass

    assert fake.loads == [champion]


@pytest.mark.parametrize("kind", ["kill", "stop"])
async def test_with_one_of_two_registries_killed_in_mid_promotion_the_state_stays_whole(
    empty_redis: RedisProcess, tmp_path: Path, base: BaseModel, kind: str
) -> None:
    """Promotions and registrations run against both; one dies by kill -9, or stops and goes on later."""
    number = signal.SIGKILL if kind == "kill" else signal.SIGSTOP
    with server(empty_redis, tmp_path) as first, server(empty_redis, tmp_path, "other") as second:
        done: asyncio.Queue[str] = asyncio.Queue()
        channels = [grpc.aio.insecure_channel(f"127.0.0.1:{s.port}") for s in (first, second)]
        stubs = [rpc.AdapterRegistryServiceStub(c) for c in channels]
        ids = [await register(stubs[0], tmp_path, base, n) for n in range(4)]
        workers = [asyncio.create_task(promote(stub, ids, done, str(w))) for w, stub in enumerate(stubs * 2)]
        registering = asyncio.create_task(register_many(stubs[1], tmp_path, base, done))
        async with asyncio.timeout(30):
            told = [await done.get() for _ in range(40)]
            os.kill(second.process.pid, number)
            told += [await done.get() for _ in range(40)]
        if kind == "stop":
            os.kill(second.process.pid, signal.SIGCONT)
        for task in (*workers, registering):
            task.cancel()
        ended = await asyncio.gather(*workers, return_exceptions=True)
        await asyncio.gather(registering, return_exceptions=True)  # its server may be gone
        assert [e for e in ended if e is not None and not isinstance(e, asyncio.CancelledError)] == []
        state, history, adapters = await everything(stubs[0])
        for channel in channels:
            await channel.close()

    moves = [e for e in history if e.kind in (pb.AdapterEvent.PROMOTED, pb.AdapterEvent.ROLLED_BACK)]
    assert [e.sequence for e in history] == list(range(1, len(history) + 1))
    for before, after in pairwise(moves):
        assert after.previous_champion == before.adapter_id  # an unbroken chain: no promotion overwrote another
    assert state.champion == moves[-1].adapter_id
    kept = [e.request_id for e in moves]
    assert {t for t in told if t} <= set(kept)  # what a client was told is stored
    assert len(kept) == len(set(kept))
    for adapter in adapters:
        folder = tmp_path / "adapters" / adapter.path
        assert json.loads((folder / "adapter_meta.json").read_text())["sha256"] == adapter.sha256


async def register(stub: Any, home: Path, base: BaseModel, seed: int) -> str:
    write_adapter(home / "incoming" / f"a{seed}", base.shapes, seed=seed)
    adapter = await stub.RegisterAdapter(pb.RegisterAdapterRequest(role=ROLE, path=f"incoming/a{seed}"))
    shutil.rmtree(home / "incoming" / f"a{seed}")
    return str(adapter.id)


async def register_many(stub: Any, home: Path, base: BaseModel, done: asyncio.Queue[str]) -> None:
    for seed in range(100, 10_000):
        await register(stub, home, base, seed)
        done.put_nowait("")


async def promote(stub: Any, ids: list[str], done: asyncio.Queue[str], name: str) -> None:
    """Promotes over and over by what the state says; a refusal because another was first is no error."""
    for turn in range(10_000):
        request_id = f"promotion-{name}-{turn}"
        try:
            state = await stub.GetState(pb.GetStateRequest(role=ROLE))
            wish = pb.PromoteAdapterRequest(
                role=ROLE, adapter_id=ids[(turn + int(name)) % len(ids)], override=True, reason="a race",
                expected_champion=state.roles[0].champion,
            )  # fmt: skip
            await stub.PromoteAdapter(wish, metadata=(("x-request-id", request_id),))
        except grpc.aio.AioRpcError as error:
            if error.code() == grpc.StatusCode.UNAVAILABLE:
                return
            if info_of(error).reason not in ("CHAMPION_CHANGED", "INVALID_FIELD"):
                raise
            continue
        done.put_nowait(request_id)


async def everything(stub: Any) -> tuple[pb.RoleState, list[pb.AdapterEvent], list[pb.Adapter]]:
    state = await stub.GetState(pb.GetStateRequest(role=ROLE))
    events: list[pb.AdapterEvent] = []
    token = ""
    while True:
        page = await stub.ListEvents(pb.ListEventsRequest(page_size=500, page_token=token))
        events += page.events
        token = page.next_page_token
        if not token:
            break
    adapters = await stub.ListAdapters(pb.ListAdaptersRequest(page_size=500))
    return state.roles[0], events[::-1], list(adapters.adapters)
