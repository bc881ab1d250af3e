"""The three kinds of adapter servers: the real engine, and LoRAX and vLLM as their documentation has them."""

import socket
from pathlib import Path

import pytest

from hivemind.servers.adapter_registry.adapter_servers.connect import connect
from hivemind.servers.adapter_registry.adapter_servers.embedded import EmbeddedServer
from hivemind.servers.adapter_registry.adapter_servers.lorax import LoraxServer
from hivemind.servers.adapter_registry.adapter_servers.port import Adapter, AdapterServer, AdapterServerError
from hivemind.servers.adapter_registry.adapter_servers.vllm import VllmServer
from hivemind.servers.common.catalogue import Catalogue, Endpoint, Model
from tests.support.adapters import write_adapter, write_word_adapter
from tests.support.engine import engine_for_tests
from tests.support.fake_lorax import fake_lorax
from tests.support.fake_vllm import fake_vllm

ID = "implementer-v000001"


@pytest.fixture
def adapter(tmp_path: Path) -> Adapter:
    return Adapter(ID, str(write_adapter(tmp_path / "adapters" / "implementer" / "v000001", {})))


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


async def test_the_engine_loads_lists_and_forgets_by_name(tmp_path: Path) -> None:
    directory = write_word_adapter(tmp_path / "adapters", ID, "violet")
    async with engine_for_tests(tmp_path) as engine:
        server = EmbeddedServer(Endpoint(0, f"http://127.0.0.1:{engine.port}/v1", "courier"))
        await engine.generations.load(None)
        assert await server.health()
        assert await server.list() == ()

        await server.ensure(Adapter(ID, str(directory)))
        await server.ensure(Adapter(ID, str(directory)))
        assert await server.list() == (ID,)
        with pytest.raises(AdapterServerError, match="404"):
            await server.ensure(Adapter("implementer-v000002", "/anywhere"))

        await server.retire(ID)
        assert await server.list() == ()
        await server.close()


async def test_lorax_loads_by_a_request_and_proves_it_by_its_header(adapter: Adapter) -> None:
    async with fake_lorax() as fake:
        server = LoraxServer(fake.endpoint)
        await server.ensure(adapter)
        assert fake.loaded == [adapter.directory]
        assert not server.capabilities.lists

        fake.mute = True
        with pytest.raises(AdapterServerError, match="x-adapter-id"):
            await server.ensure(adapter)
        await server.close()


async def test_lorax_refusals_are_told_in_its_own_words(adapter: Adapter) -> None:
    async with fake_lorax() as fake:
        server = LoraxServer(fake.endpoint)
        with pytest.raises(AdapterServerError, match=r"424: .*no local weights"):
            await server.ensure(Adapter(ID, "/not/there"))
        fake.overloaded = fake.loading = True
        with pytest.raises(AdapterServerError, match=r"429: .*overloaded"):
            await server.ensure(adapter)
        assert not await server.health()
        await server.close()


async def test_vllm_loads_lists_and_unloads_with_its_key(adapter: Adapter) -> None:
    async with fake_vllm() as fake:
        server = VllmServer(fake.endpoint)
        await server.ensure(adapter)
        await server.ensure(adapter)
        assert fake.loads == [ID]
        assert await server.list() == (ID,)
        assert fake.keys == {"Bearer secret-key"}

        await server.retire(ID)
        await server.retire(ID)
        assert await server.list() == ()
        await server.close()


async def test_a_name_that_vllm_knows_is_never_loaded_with_another_directory(adapter: Adapter, tmp_path: Path) -> None:
    other = Adapter(ID, str(write_adapter(tmp_path / "other", {})))
    async with fake_vllm() as fake:
        server = VllmServer(fake.endpoint)
        await server.ensure(adapter)
        with pytest.raises(AdapterServerError, match="another directory"):
            await server.ensure(other)

        assert fake.loads == [ID]
        assert fake.answers_with == {ID: adapter.directory}
        await server.close()


async def test_a_vllm_without_runtime_updates_names_the_cure(adapter: Adapter) -> None:
    async with fake_vllm(updating=False) as fake:
        server = VllmServer(fake.endpoint)
        with pytest.raises(AdapterServerError, match="VLLM_ALLOW_RUNTIME_LORA_UPDATING"):
            await server.ensure(adapter)
        await server.close()


@pytest.mark.parametrize("kind", [EmbeddedServer, LoraxServer, VllmServer])
async def test_a_server_that_is_not_there_is_an_error_without_its_address(kind: type[EmbeddedServer]) -> None:
    port = closed_port()
    server = kind(Endpoint(0, f"http://127.0.0.1:{port}/v1", "x"))
    for call in (server.health, lambda: server.ensure(Adapter(ID, "/x"))):
        with pytest.raises(AdapterServerError, match="cannot be reached") as error:
            await call()
        assert str(port) not in str(error.value)
    await server.close()


async def test_another_kind_of_server_is_seen_through(adapter: Adapter) -> None:
    async with fake_lorax() as fake:
        for wrong in (VllmServer(fake.endpoint), EmbeddedServer(fake.endpoint)):
            with pytest.raises(AdapterServerError, match="404"):
                await wrong.list()
            await wrong.close()


async def test_the_catalogue_names_the_servers_of_a_role() -> None:
    two = (Endpoint(0, "http://127.0.0.1:1/v1", "a"), Endpoint(1, "http://127.0.0.1:2/v1", "a"))
    models = {
        "courier": Model("courier", two, role="implementer", adapters="vllm"),
        "coder": Model("coder", two[:1], role="coder", adapters="lorax"),
        "master": Model("master", two),
    }
    servers: dict[str, list[AdapterServer]] = connect(Catalogue(models))

    assert {role: [type(s) for s in found] for role, found in servers.items()} == {
        "implementer": [VllmServer, VllmServer],
        "coder": [LoraxServer],
    }
    assert [s.address for s in servers["implementer"]] == ["127.0.0.1:1", "127.0.0.1:2"]
    for server in (*servers["implementer"], *servers["coder"]):
        await server.close()
