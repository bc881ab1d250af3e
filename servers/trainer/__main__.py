"""Composition root of the trainer server: `python -m hivemind.servers.trainer`."""

from prometheus_client import CollectorRegistry

from hivemind.servers.common.server import Mesh, main
from hivemind.servers.trainer.service import TrainerService
from hivemind.servers.trainer.settings import TrainerSettings
from hivemind.v1 import trainer_pb2_grpc


def build(settings: TrainerSettings) -> Mesh:
    """Puts the server together."""
    service = TrainerService()  # type: ignore[abstract]  # RPCs that are not built answer UNIMPLEMENTED
    return Mesh(
        name="trainer",
        service="hivemind.v1.TrainerService",
        add=lambda server: trainer_pb2_grpc.add_TrainerServiceServicer_to_server(service, server),
        registry=CollectorRegistry(),
    )


if __name__ == "__main__":
    main(TrainerSettings, "trainer", build)
