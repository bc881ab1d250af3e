"""The orchestrator's RPCs: messages in, the core, messages out."""

from collections.abc import AsyncIterator
from typing import Any

from hivemind.servers.common.translate import page_size
from hivemind.servers.orchestrator import translate
from hivemind.servers.orchestrator.feed import MapFeed
from hivemind.servers.orchestrator.ports import Store
from hivemind.servers.orchestrator.status import Control
from hivemind.v1 import orchestrator_pb2, orchestrator_pb2_grpc


class OrchestratorService(orchestrator_pb2_grpc.OrchestratorServiceServicer):
    """See orchestrator.proto."""

    def __init__(self, control: Control, store: Store, feed: MapFeed) -> None:
        self._control, self._store, self._feed = control, store, feed

    async def GetStatus(
        self, request: orchestrator_pb2.GetStatusRequest, context: Any
    ) -> orchestrator_pb2.OrchestratorStatus:
        """See orchestrator.proto."""
        return translate.status_of(await self._control.status())

    async def ListCycles(
        self, request: orchestrator_pb2.ListCyclesRequest, context: Any
    ) -> orchestrator_pb2.ListCyclesResponse:
        """See orchestrator.proto."""
        size = page_size(request.page_size)
        return translate.page_of(*await self._store.cycles(size, request.page_token))

    async def Pause(self, request: orchestrator_pb2.PauseRequest, context: Any) -> orchestrator_pb2.OrchestratorStatus:
        """See orchestrator.proto."""
        status = await self._control.pause(paused=True, reason=request.reason, idempotency_key=request.idempotency_key)
        return translate.status_of(status)

    async def Resume(
        self, request: orchestrator_pb2.ResumeRequest, context: Any
    ) -> orchestrator_pb2.OrchestratorStatus:
        """See orchestrator.proto."""
        return translate.status_of(await self._control.pause(paused=False, idempotency_key=request.idempotency_key))

    async def RunCycle(self, request: orchestrator_pb2.RunCycleRequest, context: Any) -> orchestrator_pb2.Cycle:
        """See orchestrator.proto."""
        steps = translate.checked_steps(request.steps)
        return translate.cycle_of(await self._control.run_cycle(steps, idempotency_key=request.idempotency_key))

    async def GetCognitiveMap(
        self, request: orchestrator_pb2.GetCognitiveMapRequest, context: Any
    ) -> orchestrator_pb2.CognitiveMap:
        """See orchestrator.proto."""
        return translate.map_of(await self._feed.get(), request.domain)

    async def WatchCognitiveMap(
        self, request: orchestrator_pb2.WatchCognitiveMapRequest, context: Any
    ) -> AsyncIterator[orchestrator_pb2.WatchCognitiveMapResponse]:
        """See orchestrator.proto."""
        async for found in self._feed.watch():
            yield orchestrator_pb2.WatchCognitiveMapResponse(map=translate.map_of(found))
