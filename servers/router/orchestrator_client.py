"""The Orchestrator as the Router sees it: the cognitive map, pushed by WatchCognitiveMap."""

import grpc
import structlog

from hivemind.servers.common.channels import follow, peer_metadata
from hivemind.servers.router.known_domains import DomainBook, KnownDomain
from hivemind.v1 import orchestrator_pb2, orchestrator_pb2_grpc

_log = structlog.get_logger()


class OrchestratorClient:
    """Keeps a DomainBook up to date."""

    def __init__(self, channel: grpc.aio.Channel, book: DomainBook, *, api_key: str | None) -> None:
        self._stub = orchestrator_pb2_grpc.OrchestratorServiceStub(channel)
        self._book, self._api_key = book, api_key

    async def watch(self) -> None:
        """Follows the map for ever; a lost stream is opened again, the last word holds meanwhile."""
        request = orchestrator_pb2.WatchCognitiveMapRequest(watcher="router")
        await follow(
            "orchestrator",
            lambda: self._stub.WatchCognitiveMap(request, metadata=peer_metadata(self._api_key), wait_for_ready=True),
            lambda message: self._book.replace({s.name: KnownDomain(s.confidence, s.n) for s in message.map.skills}),
        )
