"""The Router follows the Orchestrator's map, and keeps its last word while nobody tells another."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest

from hivemind.servers.common.channels import peer_channel
from hivemind.servers.common.tasks import end_tasks
from hivemind.servers.router.known_domains import DomainBook, KnownDomain
from hivemind.servers.router.orchestrator_client import OrchestratorClient
from hivemind.v1 import orchestrator_pb2 as pb
from hivemind.v1 import orchestrator_pb2_grpc as rpc
from tests.support.arbiter_rig import eventually
from tests.support.orchestrators import free_port


class Telling(rpc.OrchestratorServiceServicer):
    """Tells maps as a test puts them."""

    def __init__(self) -> None:
        self.maps: asyncio.Queue[dict[str, float]] = asyncio.Queue()

    async def WatchCognitiveMap(
        self, request: pb.WatchCognitiveMapRequest, context: object
    ) -> AsyncIterator[pb.WatchCognitiveMapResponse]:
        while True:
            found = await self.maps.get()
            skills = [pb.Skill(name=name, confidence=c, n=20.0) for name, c in found.items()]
            yield pb.WatchCognitiveMapResponse(map=pb.CognitiveMap(skills=skills))


@asynccontextmanager
async def orchestrator(port: int) -> AsyncIterator[Telling]:
    server, telling = grpc.aio.server(), Telling()  # type: ignore[abstract]
    rpc.add_OrchestratorServiceServicer_to_server(telling, server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield telling
    finally:
        await server.stop(0)


async def test_each_map_replaces_the_one_before_and_a_lost_stream_is_opened_again() -> None:
    port, book = free_port(), DomainBook()
    channel = peer_channel(f"127.0.0.1:{port}")
    task = asyncio.create_task(OrchestratorClient(channel, book, api_key=None).watch())
    try:
        async with orchestrator(port) as telling:
            telling.maps.put_nowait({"math": 0.2, "law": 0.5})
            await eventually(lambda: book.of("law"))
            telling.maps.put_nowait({"math": 0.3})
            await eventually(lambda: book.of("law") is None)
        assert book.of("math") == KnownDomain(0.3, 20.0)

        async with orchestrator(port) as telling:
            telling.maps.put_nowait({"math": 0.9})
            await eventually(lambda: book.of("math") == KnownDomain(0.9, 20.0), within_s=15)
    finally:
        await end_tasks(task)
        await channel.close()


@pytest.mark.parametrize(
    ("known", "weak", "said"),
    [
        (KnownDomain(0.2, 50.0), True, " (the mesh is weak there: confidence 0.20)"),
        (KnownDomain(0.8, 50.0), False, " (the mesh is strong there: confidence 0.80)"),
        (KnownDomain(0.55, 50.0), False, ""),
        (KnownDomain(0.01, 1.0), False, ""),
        (KnownDomain(0.99, 1.0), False, ""),
    ],
)
def test_what_is_said_of_a_domain_rests_on_enough_evidence(known: KnownDomain, weak: bool, said: str) -> None:
    assert (known.weak, known.said) == (weak, said)


def test_more_evidence_of_weakness_moves_further_and_none_moves_nothing() -> None:
    assert KnownDomain(0.2, 80.0).shift < KnownDomain(0.2, 5.0).shift < 0
    assert KnownDomain(0.2, 0.0).shift == 0


def test_a_high_lower_bound_has_its_evidence_behind_it_and_counts_in_full() -> None:
    assert KnownDomain(0.9, 12.0).shift == KnownDomain(0.9, 80.0).shift > KnownDomain(0.7, 80.0).shift > 0
