"""Settings of the arbiter server."""

from hivemind.servers.common.settings import ServerSettings


class ArbiterSettings(ServerSettings):
    """What every server has, with this server's ports."""

    grpc_port: int = 7102
    metrics_port: int = 7202
