"""The Orchestrator as the Router sees it: the cognitive map, pushed by WatchCognitiveMap."""

import asyncio
from typing import Final

import grpc
import structlog

from hivemind.servers.common.channels import peer_metadata
from hivemind.servers.router.known_domains import DomainBook, KnownDomain
from hivemind.v1 import orchestrator_pb2, orchestrator_pb2_grpc

_log = structlog.get_logger()

_RECONNECT_S: Final = 0.5


class OrchestratorClient:
    """Keeps a DomainBook up to date."""

    def __init__(self, channel: grpc.aio.Channel, book: DomainBook, *, api_key: str | None) -> None:
        self._stub = orchestrator_pb2_grpc.OrchestratorServiceStub(channel)
        self._book, self._api_key = book, api_key

    async def watch(self) -> None:
        """Follows the map for ever; a lost stream is opened again, the last word holds meanwhile."""
        lost = False
        while True:
            try:
                request = orchestrator_pb2.WatchCognitiveMapRequest(watcher="router")
                metadata = peer_metadata(self._api_key)
                async for message in self._stub.WatchCognitiveMap(request, metadata=metadata, wait_for_ready=True):
                    self._book.replace({s.name: KnownDomain(s.confidence, s.n) for s in message.map.skills})
                    lost = False
            except grpc.aio.AioRpcError as error:
                if not lost:
                    _log.warning("orchestrator_lost", code=error.code().name)
                lost = True
            await asyncio.sleep(_RECONNECT_S)
