"""Settings of the arbiter server."""

from pydantic import Field

from hivemind.servers.common.settings import ServerSettings


class ArbiterSettings(ServerSettings):
    """What every server has, and how ledger, stream and refinement work. Times are in seconds, sizes in bytes."""

    grpc_port: int = 7102
    metrics_port: int = 7202
    ledger_rotate_bytes: int = Field(default=256 * 1024 * 1024, ge=1024)
    ledger_poll_s: float = Field(default=0.1, gt=0)
    platinum_poll_s: float = Field(default=0.1, gt=0)
    platinum_heartbeat_s: float = Field(default=5.0, gt=0)
    platinum_idle_s: float = Field(default=600.0, gt=0)
    platinum_lease_s: float = Field(default=15.0, gt=0)
    catalogue_poll_s: float = Field(default=1.0, gt=0)
    spend_flush_s: float = Field(default=0.5, gt=0)
    refinement_least_score: float = Field(default=0.7, ge=0, le=1)
    """The score from which on an answer may be accepted."""
    refinement_concurrency: int = Field(default=4, ge=1, le=256)
    refinements_per_minute: float = Field(default=60.0, ge=0)
    """From the queue, over all workers of this process; 0: no limit."""
    refinement_lease_s: float = Field(default=60.0, gt=0)
    """How long a candidate of a worker that died is not taken by another."""
    refinement_poll_s: float = Field(default=0.5, gt=0)
    queue_bound: int = Field(default=10_000, gt=0)
    queue_tenant_share: float = Field(default=0.25, gt=0, le=1)
    """How much of the queue one tenant may fill."""
    queue_seen_s: int = Field(default=6 * 3600, gt=0)
    """How long the same conversation is not taken again."""
