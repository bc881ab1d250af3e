"""The orchestrator server's RPCs. None is built yet: each answers UNIMPLEMENTED with the reason NOT_BUILT."""

from hivemind.v1 import orchestrator_pb2_grpc


class OrchestratorService(orchestrator_pb2_grpc.OrchestratorServiceServicer):
    """See orchestrator.proto."""
