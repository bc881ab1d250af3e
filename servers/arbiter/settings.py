"""Settings of the arbiter server."""

from pydantic import Field

from hivemind.servers.common.settings import ServerSettings


class ArbiterSettings(ServerSettings):
    """What every server has, and how ledger and stream work. Times are in seconds, sizes in bytes."""

    grpc_port: int = 7102
    metrics_port: int = 7202
    ledger_rotate_bytes: int = Field(default=256 * 1024 * 1024, ge=1024)
    ledger_poll_s: float = Field(default=0.1, gt=0)
    platinum_poll_s: float = Field(default=0.1, gt=0)
    platinum_heartbeat_s: float = Field(default=5.0, gt=0)
    platinum_idle_s: float = Field(default=600.0, gt=0)
    platinum_lease_s: float = Field(default=15.0, gt=0)
