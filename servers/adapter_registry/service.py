"""The adapter registry server's RPCs. None is built yet: each answers UNIMPLEMENTED with the reason NOT_BUILT."""

from hivemind.v1 import adapter_registry_pb2_grpc


class AdapterRegistryService(adapter_registry_pb2_grpc.AdapterRegistryServiceServicer):
    """See adapter_registry.proto."""
