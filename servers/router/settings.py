"""Settings of the Router."""

from pydantic import Field

from hivemind.servers.common.settings import ServerSettings


class RouterSettings(ServerSettings):
    """What every server has, and what only the Router has. Times in seconds."""

    grpc_port: int = 7101
    metrics_port: int = 7201
    http_port: int = Field(default=7111, ge=0, le=65535)
    record_retention_s: int = Field(default=7 * 24 * 3600, gt=0)
    record_flush_s: float = Field(default=0.1, gt=0)
    spend_flush_s: float = Field(default=0.5, gt=0)
    catalogue_poll_s: float = Field(default=1.0, gt=0)
    skills_poll_s: float = Field(default=1.0, gt=0)
    explore: float = Field(default=0.02, ge=0, le=0.5)
    """Share of requests for `auto` that try the runner-up, where that costs little."""
    nominate: float = Field(default=0.01, ge=0, le=1)
    """Share of all other answers that the Arbiter is asked to look at."""
    conversation_retention_s: int = Field(default=24 * 3600, gt=0)
    """How long what was said is kept, redacted, so that feedback on it can be learnt from."""
    conversations: int = Field(default=20_000, gt=0)
    """How many conversations are kept at the most."""
    upstream_connections: int = Field(default=1024, gt=0)
