"""Composition root of the arbiter server: `python -m hivemind.servers.arbiter`."""

from prometheus_client import CollectorRegistry

from hivemind.servers.arbiter.service import ArbiterService
from hivemind.servers.arbiter.settings import ArbiterSettings
from hivemind.servers.common.server import Mesh, main
from hivemind.v1 import arbiter_pb2_grpc


def build(settings: ArbiterSettings) -> Mesh:
    """Puts the server together."""
    service = ArbiterService()  # type: ignore[abstract]  # RPCs that are not built answer UNIMPLEMENTED
    return Mesh(
        name="arbiter",
        service="hivemind.v1.ArbiterService",
        add=lambda server: arbiter_pb2_grpc.add_ArbiterServiceServicer_to_server(service, server),
        registry=CollectorRegistry(),
    )


if __name__ == "__main__":
    main(ArbiterSettings, "arbiter", build)
