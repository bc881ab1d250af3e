"""Stands for the AdapterRegistry: takes what is registered, or refuses as it is told."""

from dataclasses import dataclass, field
from typing import Any

import grpc

from hivemind.v1 import adapter_registry_pb2 as pb
from hivemind.v1 import adapter_registry_pb2_grpc as rpc


@dataclass
class ScriptedRegistry(rpc.AdapterRegistryServiceServicer):
    """`refusal`: what every registration is answered, None to take it. `champion`: id and path of the one in office."""

    refusal: tuple[grpc.StatusCode, str] | None = None
    champion: tuple[str, str] | None = None
    calls: list[pb.RegisterAdapterRequest] = field(default_factory=list)
    traffic: list[pb.SetTrafficRequest] = field(default_factory=list)
    outcomes: list[pb.Outcome] = field(default_factory=list)
    full: bool = False
    known: dict[str, str] = field(default_factory=dict)
    challengers: set[str] = field(default_factory=set)
    port: int = 0
    _server: grpc.aio.Server | None = None

    async def start(self) -> None:
        self._server = grpc.aio.server()
        rpc.add_AdapterRegistryServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(None)

    def promote(self, adapter_id: str) -> None:
        """The adapter takes office and challenges no more."""
        self.challengers.discard(adapter_id)
        self.champion = (adapter_id, f"{adapter_id}/adapter")

    async def RegisterAdapter(self, request: pb.RegisterAdapterRequest, context: Any) -> pb.Adapter:
        self.calls.append(request)
        if self.refusal is not None:
            await context.abort(*self.refusal)
        name = self.known.setdefault(request.idempotency_key, f"{request.role}-v{len(self.known) + 1:06d}")
        return pb.Adapter(id=name, role=request.role, state=pb.Adapter.REGISTERED)

    async def SetTraffic(self, request: pb.SetTrafficRequest, context: Any) -> pb.RoleState:
        self.traffic.append(request)
        if self.full:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "all challengers get half of the traffic at most")
        if request.traffic or request.shadow:
            self.challengers.add(request.adapter_id)
        else:
            self.challengers.discard(request.adapter_id)
        return pb.RoleState(role=request.role)

    async def RecordOutcomes(self, request: pb.RecordOutcomesRequest, context: Any) -> pb.RecordOutcomesResponse:
        self.outcomes += request.outcomes
        return pb.RecordOutcomesResponse(recorded=len(request.outcomes))

    async def GetState(self, request: pb.GetStateRequest, context: Any) -> pb.RegistryState:
        champion = self.champion[0] if self.champion else ""
        challenges = [pb.Challenge(adapter_id=name) for name in sorted(self.challengers)]
        return pb.RegistryState(roles=[pb.RoleState(role="implementer", champion=champion, challenges=challenges)])

    async def GetAdapter(self, request: pb.GetAdapterRequest, context: Any) -> pb.Adapter:
        return pb.Adapter(id=request.id, path=self.champion[1] if self.champion else "")
