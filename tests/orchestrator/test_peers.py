"""The loop's clients against real servers: a real registry with its evidence, a real Governor."""

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from hivemind.servers.adapter_registry.base_model import BaseModel, read_gguf
from hivemind.servers.common.courier import WHEEL_SHA256, wheel_file
from hivemind.servers.common.errors import MeshError
from hivemind.servers.common.redis_client import redis_client
from hivemind.servers.orchestrator.governor_client import GovernorClient
from hivemind.servers.orchestrator.lease import Lease
from hivemind.servers.orchestrator.ports import Money, Policy, RoleState
from hivemind.servers.orchestrator.ramp import Ramp
from hivemind.servers.orchestrator.registry_client import RegistryClient
from hivemind.servers.orchestrator.steps import Challengers
from hivemind.servers.orchestrator.store_redis import RedisStore
from hivemind.v1 import common_pb2, governor_pb2
from tests.support.arbiter_rig import running_arbiter
from tests.support.redis_process import RedisProcess
from tests.support.registry import ROLE, Rig, running_registry

PAIRS = 240


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return read_gguf("courier", wheel_file(), sha256=WHEEL_SHA256)


@pytest.fixture
async def registry(empty_redis: RedisProcess, tmp_path: Path, base: BaseModel) -> AsyncIterator[Rig]:
    async with running_registry(empty_redis, tmp_path, base) as made:
        yield made


@pytest.fixture
def client(registry: Rig) -> RegistryClient:
    return RegistryClient(registry.channel, api_key=None)


@pytest.fixture
async def leases(empty_redis: RedisProcess) -> AsyncIterator[tuple[Lease, Lease]]:
    redis = redis_client(empty_redis.url, timeout_s=1.0)
    store = RedisStore(redis, kept=10, half_life_s=1.0)
    first, second = (Lease(store, name, ttl_s=60, renew_s=20, retry_s=1) for name in ("first", "second"))
    yield first, second
    await redis.aclose()


def step(client: RegistryClient, registry: Rig) -> Challengers:
    return Challengers(client, Policy(frozenset({ROLE}), 0.0, 5), Ramp(50), now=lambda: registry.time[0])


async def state_of(client: RegistryClient) -> RoleState:
    (found,) = await client.roles()
    return found


async def test_an_adapter_goes_from_registered_to_shadow_to_champion_by_its_evidence(
    registry: Rig, client: RegistryClient, leases: tuple[Lease, Lease]
) -> None:
    leader, _ = leases
    await leader.beat()
    adapter = await registry.register()

    shadowed = await step(client, registry).run(leader.token)
    waits = await step(client, registry).run(leader.token)
    await registry.judge(adapter.id, "", wins=PAIRS * 3 // 4, losses=PAIRS // 4)
    promoted = await step(client, registry).run(leader.token)

    assert shadowed.note == f"{adapter.id} answers in the background"
    assert waits.outcome == "SKIPPED"
    assert "HOLD" in waits.note
    assert promoted.note.startswith(f"{adapter.id} promoted: ")
    assert (await state_of(client)).champion == adapter.id
    assert len(await client.promotions(ROLE)) == 1
    assert (await client.adapter(adapter.id)).state == "CHAMPION"
    assert (await registry.events())[0].reason.startswith("automatic: ")


async def test_a_challenger_that_answers_well_gets_more_of_the_real_traffic_under_the_token(
    registry: Rig, client: RegistryClient, leases: tuple[Lease, Lease]
) -> None:
    leader, _ = leases
    await leader.beat()
    name = await registry.challenger(0.01)
    looked = step(client, registry)

    first = await looked.run(leader.token)
    await registry.serve(name, 60)
    await registry.serve("", 60, name="champion")
    second = await looked.run(leader.token)
    third = await looked.run(leader.token)

    assert (first.outcome, third.outcome) == ("SKIPPED", "SKIPPED")
    assert second.note == f"{name} gets 5% of the traffic, after 60 outcomes"
    assert (await state_of(client)).shares == {name: 0.05}
    assert len(await client.traffic_changes(ROLE, name)) == 2


async def test_a_leader_that_was_followed_is_refused_by_the_registry(
    registry: Rig, client: RegistryClient, leases: tuple[Lease, Lease], empty_redis: RedisProcess
) -> None:
    old, new = leases
    await old.beat()
    token = old.token()
    empty_redis.client.delete("orchestrator:lease")
    await new.beat()
    first, second = await registry.register(), await registry.register()
    await client.shadow(await state_of(client), first.id, token=new.token())

    with pytest.raises(MeshError) as refused:
        await client.shadow(await state_of(client), second.id, token=token)

    assert refused.value.reason == "STALE_FENCING_TOKEN"
    assert (await state_of(client)).challengers == (first.id,)


async def test_a_role_that_has_changed_since_is_not_shadowed_blindly(registry: Rig, client: RegistryClient) -> None:
    adapter, other = await registry.register(), await registry.register()
    before = await state_of(client)
    await registry.traffic(other.id, 0.1)

    with pytest.raises(MeshError) as refused:
        await client.shadow(before, adapter.id, token=1)

    assert refused.value.reason == "ETAG_MISMATCH"


async def test_what_may_be_refined_is_what_the_governor_says(empty_redis: RedisProcess, tmp_path: Path) -> None:
    async with (
        running_arbiter(tmp_path, empty_redis) as rig,
        grpc.aio.insecure_channel(rig.governor_address) as channel,
    ):
        governor = GovernorClient(channel, api_key=None)
        before = await governor.refinement()
        budget = governor_pb2.Budget(
            tenant="*", period=common_pb2.DAY, purpose=common_pb2.REFINEMENT, limit_micros=4321
        )
        await rig.configure(budgets=[budget])
        limited = await governor.refinement()
        await rig.configure(enabled=False)

        assert before.enabled
        assert limited == Money(True, 4321)
        assert not (await governor.refinement()).enabled


async def test_an_absent_peer_is_an_error_of_the_mesh() -> None:
    async with grpc.aio.insecure_channel("127.0.0.1:1") as channel:
        with pytest.raises(MeshError) as refused:
            await RegistryClient(channel, api_key=None).roles()

    assert refused.value.reason == "PEER_UNAVAILABLE"
