"""Replicas hold what the state names, whatever happens to them."""

import asyncio
from collections.abc import Mapping
from pathlib import Path

import pytest

from hivemind.servers.adapter_registry.adapter_servers.embedded import EmbeddedServer
from hivemind.servers.adapter_registry.adapter_servers.lorax import LoraxServer
from hivemind.servers.adapter_registry.adapter_servers.port import AdapterServer
from hivemind.servers.adapter_registry.adapter_servers.vllm import VllmServer
from hivemind.servers.adapter_registry.ports import ReplicaState
from hivemind.servers.adapter_registry.reconciler import Pace, Reconciler
from hivemind.servers.common.catalogue import Endpoint
from tests.support.adapters import write_adapter, write_word_adapter
from tests.support.engine import engine_for_tests
from tests.support.fake_lorax import fake_lorax
from tests.support.fake_vllm import fake_vllm
from tests.support.waiting import until

ROLE = "implementer"
ONE, TWO = f"{ROLE}-v000001", f"{ROLE}-v000002"


class State:
    """What the registry would say; directories as on disk."""

    def __init__(self, folder: Path, *ids: str) -> None:
        self.folder, self.ids = folder, list(ids)

    def desired(self, role: str) -> Mapping[str, str]:
        assert role == ROLE
        return {name: str(self.folder / ROLE / name.rpartition("-")[2]) for name in self.ids}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Bench:
    """A reconciler of one replica, looked at by hand."""

    def __init__(self, state: State, server: AdapterServer) -> None:
        self.clock, self.changes = Clock(), 0
        self.reconciler = Reconciler(state.desired, {ROLE: [server]}, clock=self.clock, on_change=self._changed)
        self.server = server

    def _changed(self, role: str) -> None:
        self.changes += 1

    async def look(self) -> ReplicaState:
        await self.reconciler.look(self.reconciler._replicas[0])
        return self.reconciler.replicas(ROLE)[0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for version in ("v000001", "v000002"):
        write_adapter(tmp_path / ROLE / version, {})
    return tmp_path


async def test_the_champion_is_loaded_before_the_challenger(folder: Path) -> None:
    async with fake_vllm() as fake:
        bench = Bench(State(folder, TWO, ONE), VllmServer(fake.endpoint))
        state = await bench.look()
        await bench.server.close()

    assert fake.loads == [TWO, ONE]
    assert state == ReplicaState(fake.endpoint.host, (ONE, TWO), True)


async def test_a_replica_that_restarted_empty_is_seen_so_and_loaded_again(folder: Path) -> None:
    async with fake_vllm() as fake:
        bench = Bench(State(folder, ONE), VllmServer(fake.endpoint))
        seen: list[tuple[str, ...]] = []
        await bench.look()
        fake.restart()
        bench.reconciler._on_change = lambda role: seen.append(bench.reconciler.replicas(role)[0].adapters)
        state = await bench.look()
        await bench.server.close()

    assert seen == [(), (ONE,)]  # without it first: nobody is sent there meanwhile
    assert state.adapters == (ONE,)


async def test_nothing_is_loaded_or_told_where_all_is_as_it_should_be(folder: Path) -> None:
    async with fake_vllm() as fake:
        bench = Bench(State(folder, ONE), VllmServer(fake.endpoint))
        await bench.look()
        changes = bench.changes
        await bench.look()
        await bench.server.close()

    assert fake.loads == [ONE]
    assert bench.changes == changes


async def test_a_load_that_fails_is_tried_again_ever_later_and_the_others_are_loaded(folder: Path) -> None:
    missing = f"{ROLE}-v000009"
    async with fake_vllm() as fake:
        bench = Bench(State(folder, missing, ONE), VllmServer(fake.endpoint))
        state = await bench.look()
        assert state.adapters == (ONE,)
        assert missing in state.note
        assert "404" in state.note
        tries = []
        for second in range(1, 16):
            bench.clock.now = float(second)
            before = fake.loads.count(missing)
            await bench.look()
            tries += [second] * (fake.loads.count(missing) - before)
        assert tries == [1, 3, 7, 15]

        write_adapter(folder / ROLE / "v000009", {})
        bench.clock.now = 100.0
        state = await bench.look()
        await bench.server.close()

    assert state.adapters == (ONE, missing)
    assert state.note == ""


async def test_what_nobody_names_any_more_goes_after_a_minute_but_never_the_operators_own(folder: Path) -> None:
    state = State(folder, ONE, TWO)
    async with fake_vllm() as fake:
        bench = Bench(state, VllmServer(fake.endpoint))
        fake.loaded["operators-lora"] = "/elsewhere"
        await bench.look()
        state.ids = [TWO]
        await bench.look()
        bench.clock.now = 59.0
        assert ONE in (await bench.look()).adapters
        bench.clock.now = 61.0
        found = await bench.look()
        await bench.server.close()

    assert found.adapters == (TWO, "operators-lora")


async def test_lorax_holds_what_it_has_just_proved(folder: Path) -> None:
    async with fake_lorax() as fake:
        bench = Bench(State(folder, ONE, TWO), LoraxServer(fake.endpoint))
        assert (await bench.look()).adapters == (ONE, TWO)
        fake.restart()
        changes = bench.changes
        assert (await bench.look()).adapters == (ONE, TWO)
        assert bench.changes == changes
        fake.mute = True
        state = await bench.look()
        await bench.server.close()

    assert state.adapters == ()
    assert "x-adapter-id" in state.note


async def test_a_replica_that_is_gone_holds_nothing_and_begins_anew_when_it_is_back(folder: Path) -> None:
    async with fake_lorax() as fake:
        bench = Bench(State(folder, ONE), LoraxServer(fake.endpoint))
        fake.overloaded = True
        assert (await bench.look()).adapters == ()
        fake.loading = True
        state = await bench.look()
        assert (state.healthy, state.adapters) == (False, ())
        assert "not ready" in state.note
        fake.loading = fake.overloaded = False
        state = await bench.look()  # the clock has not moved: no back-off is left from before
        await bench.server.close()

    assert (state.healthy, state.adapters) == (True, (ONE,))


async def test_the_real_engine_that_comes_back_empty_is_loaded_again(tmp_path: Path) -> None:
    write_word_adapter(tmp_path / "adapters", ONE, "violet")
    loop = asyncio.get_running_loop()
    async with engine_for_tests(tmp_path) as engine:
        port = engine.port
        server = EmbeddedServer(Endpoint(0, f"http://127.0.0.1:{port}/v1", "courier"))
        reconciler = Reconciler(
            State(tmp_path / "adapters", ONE).desired,
            {ROLE: [server]},
            clock=loop.time,
            on_change=lambda _: None,
            pace=Pace(look_s=0.05),
        )
        run = asyncio.ensure_future(reconciler.run())
        await asyncio.to_thread(until, lambda: reconciler.replicas(ROLE)[0].adapters == (ONE,), within_s=60)
    await asyncio.to_thread(until, lambda: not reconciler.replicas(ROLE)[0].healthy, within_s=60)

    async with engine_for_tests(tmp_path, port=port) as engine:
        await asyncio.to_thread(until, lambda: reconciler.replicas(ROLE)[0].adapters == (ONE,), within_s=60)
        answer = await engine.chat(model=ONE)
    run.cancel()
    await asyncio.gather(run, return_exceptions=True)

    assert answer.headers["x-adapter-id"] == ONE


async def test_a_change_of_the_state_is_acted_on_at_once(folder: Path) -> None:
    state = State(folder, ONE)
    async with fake_vllm() as fake:
        server = VllmServer(fake.endpoint)
        reconciler = Reconciler(
            state.desired, {ROLE: [server]}, clock=Clock(), on_change=lambda _: None, pace=Pace(look_s=3600.0)
        )
        run = asyncio.ensure_future(reconciler.run())
        await asyncio.to_thread(until, lambda: reconciler.replicas(ROLE)[0].adapters == (ONE,))
        state.ids.append(TWO)
        reconciler.wake()
        await asyncio.to_thread(until, lambda: reconciler.replicas(ROLE)[0].adapters == (ONE, TWO))
        run.cancel()
        await asyncio.gather(run, return_exceptions=True)


async def test_other_servers_are_looked_after_and_one_that_stays_forgets_nothing(folder: Path) -> None:
    state = State(folder, ONE)
    async with fake_vllm() as stays, fake_vllm() as goes, fake_vllm() as comes:
        reconciler = Reconciler(
            state.desired, {ROLE: [VllmServer(stays.endpoint), VllmServer(goes.endpoint)]},
            clock=Clock(), on_change=lambda _: None, pace=Pace(look_s=3600.0),
        )  # fmt: skip
        run = asyncio.ensure_future(reconciler.run())
        await asyncio.to_thread(until, lambda: [r.adapters for r in reconciler.replicas(ROLE)] == [(ONE,)] * 2)

        reconciler.replace({ROLE: [VllmServer(stays.endpoint), VllmServer(comes.endpoint)]})
        assert [r.adapters for r in reconciler.replicas(ROLE)] == [(ONE,), ()]
        await asyncio.to_thread(until, lambda: [r.adapters for r in reconciler.replicas(ROLE)] == [(ONE,)] * 2)
        state.ids.append(TWO)
        reconciler.wake()
        await asyncio.to_thread(until, lambda: [r.adapters for r in reconciler.replicas(ROLE)] == [(ONE, TWO)] * 2)
        reconciler.replace({})
        assert reconciler.replicas(ROLE) == ()
        run.cancel()
        await asyncio.gather(run, return_exceptions=True)

    assert stays.loads == comes.loads == [ONE, TWO]
    assert goes.loads == [ONE]
