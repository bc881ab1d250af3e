"""Settings of the orchestrator server."""

from hivemind.servers.common.settings import ServerSettings


class OrchestratorSettings(ServerSettings):
    """What every server has, with this server's ports."""

    grpc_port: int = 7106
    metrics_port: int = 7206
