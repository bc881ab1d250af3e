"""Composition root of the orchestrator server: `python -m hivemind.servers.orchestrator`."""

from prometheus_client import CollectorRegistry

from hivemind.servers.common.server import Mesh, main
from hivemind.servers.orchestrator.service import OrchestratorService
from hivemind.servers.orchestrator.settings import OrchestratorSettings
from hivemind.v1 import orchestrator_pb2_grpc


def build(settings: OrchestratorSettings) -> Mesh:
    """Puts the server together."""
    service = OrchestratorService()  # type: ignore[abstract]  # RPCs that are not built answer UNIMPLEMENTED
    return Mesh(
        name="orchestrator",
        service="hivemind.v1.OrchestratorService",
        add=lambda server: orchestrator_pb2_grpc.add_OrchestratorServiceServicer_to_server(service, server),
        registry=CollectorRegistry(),
    )


if __name__ == "__main__":
    main(OrchestratorSettings, "orchestrator", build)
