"""The trainer server's RPCs. None is built yet: each answers UNIMPLEMENTED with the reason NOT_BUILT."""

from hivemind.v1 import trainer_pb2_grpc


class TrainerService(trainer_pb2_grpc.TrainerServiceServicer):
    """See trainer.proto."""
