"""The arbiter server's RPCs. None is built yet: each answers UNIMPLEMENTED with the reason NOT_BUILT."""

from hivemind.v1 import arbiter_pb2_grpc


class ArbiterService(arbiter_pb2_grpc.ArbiterServiceServicer):
    """See arbiter.proto."""
