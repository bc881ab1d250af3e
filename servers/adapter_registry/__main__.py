"""Composition root of the adapter registry server: `python -m hivemind.servers.adapter_registry`."""

from prometheus_client import CollectorRegistry

from hivemind.servers.adapter_registry.service import AdapterRegistryService
from hivemind.servers.adapter_registry.settings import AdapterRegistrySettings
from hivemind.servers.common.server import Mesh, main
from hivemind.v1 import adapter_registry_pb2_grpc


def build(settings: AdapterRegistrySettings) -> Mesh:
    """Puts the server together."""
    service = AdapterRegistryService()  # type: ignore[abstract]  # RPCs that are not built answer UNIMPLEMENTED
    return Mesh(
        name="adapter_registry",
        service="hivemind.v1.AdapterRegistryService",
        add=lambda server: adapter_registry_pb2_grpc.add_AdapterRegistryServiceServicer_to_server(service, server),
        registry=CollectorRegistry(),
    )


if __name__ == "__main__":
    main(AdapterRegistrySettings, "adapter_registry", build)
