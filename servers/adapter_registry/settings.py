"""Settings of the adapter registry server."""

from hivemind.servers.common.settings import ServerSettings


class AdapterRegistrySettings(ServerSettings):
    """What every server has, with this server's ports."""

    grpc_port: int = 7103
    metrics_port: int = 7203
