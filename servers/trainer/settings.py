"""Settings of the trainer server."""

from hivemind.servers.common.settings import ServerSettings


class TrainerSettings(ServerSettings):
    """What every server has, with this server's ports."""

    grpc_port: int = 7105
    metrics_port: int = 7205
