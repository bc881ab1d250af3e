"""Settings of the orchestrator server."""

from pydantic import Field, SecretStr

from hivemind.servers.common.settings import ServerSettings


class OrchestratorSettings(ServerSettings):
    """What every server has, and how the loop runs. Times are in seconds, money in micro-USD.

    `autopromote`, `autopromote_cooldown_s` and `autopromote_max_per_day` are the registry's: one policy for both.
    """

    grpc_port: int = 7106
    metrics_port: int = 7206
    router_address: str = "127.0.0.1:7101"
    lease_ttl_s: float = Field(default=15.0, gt=0)
    """How long a leader that gives no sign of life is waited for."""
    lease_renew_s: float = Field(default=5.0, gt=0)
    lease_retry_s: float = Field(default=2.0, gt=0)
    """How often the others try, and a leader whose renewal failed."""
    orchestrator_poll_s: float = Field(default=0.2, gt=0, le=0.5)
    """How often each replica looks for a pause, a wished cycle and a new map."""
    catalogue_poll_s: float = Field(default=1.0, gt=0)
    cycle_every_s: float = Field(default=60.0, gt=0)
    cycle_step_s: float = Field(default=8.0, gt=0)
    """The most time that a step may take."""
    cycles_kept: int = Field(default=500, gt=0)
    orchestrator_niceness: int = Field(default=10, ge=0, le=19)
    """By how much the process stands back behind those that answer requests."""
    map_half_life_days: float = Field(default=14.0, gt=0)
    """After how many days a piece of evidence counts half."""
    refine_per_cycle: int = Field(default=4, ge=0, le=100)
    """How many recent answers of the domain that is worth most are nominated in a cycle; 0: none."""
    refine_micros_per_cycle: int = Field(default=20_000, ge=0)
    """What their refinement may be expected to cost together."""
    autopromote: str = ""
    autopromote_cooldown_s: float = Field(default=6 * 3600.0, ge=0)
    autopromote_max_per_day: int = Field(default=2, ge=1)
    ramp_outcomes: int = Field(default=50, ge=0)
    """Outcomes that a challenger without a verdict must have had at a share of the traffic before it gets the next one
    (1, 5, 10, 25, 50%); 0: its share stays."""
    train_every_examples: int = Field(default=500, ge=0)
    """After how many new lines of the ledger a training job is started for the roles in `autopromote`; 0: none is."""
    train_max_duration_s: float = Field(default=3600.0, ge=0)
    train_max_cost_micros: int = Field(default=0, ge=0)
    """The most that such a job may take and cost; 0: no limit."""
    neo4j_url: str = ""
    """Such as bolt://127.0.0.1:7687; empty: the map lies in runs/cognitive_map.json only."""
    neo4j_user: str = "neo4j"
    neo4j_password: SecretStr = SecretStr("")
    neo4j_database: str = ""
    neo4j_timeout_s: float = Field(default=5.0, gt=0)
    """The most time that one write of the map may take."""
    neo4j_retry_s: float = Field(default=5.0, gt=0)
    """After how long a database that failed is tried again."""
