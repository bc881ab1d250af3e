"""Settings that every server has, from the environment (HIVEMIND_* and REDIS_URL)."""

from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

SERVERS = ("router", "arbiter", "adapter_registry", "governor", "trainer", "orchestrator")
"""The servers of the contract, by the name of their package below hivemind.servers."""


class ServerSettings(BaseSettings):
    """How one server process is set up. Times are in seconds, sizes in bytes.

    Ports of 0 mean: any free one. `hivemind up` and the Helm chart set them; a server started by hand gets the defaults
    of its own settings class. `datasets` holds the platinum ledger, `adapters` the adapters; both lie in `home` unless
    they are named.
    """

    model_config = SettingsConfigDict(env_prefix="HIVEMIND_", extra="ignore", env_ignore_empty=True)

    home: Path = Path(".hivemind")
    config: Path = Path("hivemind.toml")
    datasets: Path = Field(default_factory=lambda data: data["home"] / "datasets")
    adapters: Path = Field(default_factory=lambda data: data["home"] / "adapters")
    host: str = "127.0.0.1"
    grpc_port: int = Field(default=0, ge=0, le=65535)
    metrics_port: int = Field(default=0, ge=0, le=65535)
    redis_url: str = Field(default="redis://127.0.0.1:6379/0", validation_alias="REDIS_URL")
    redis_timeout_s: float = Field(default=2.0, gt=0)
    api_key: SecretStr | None = None
    log_level: str = "INFO"
    max_body: int = Field(default=16 * 1024 * 1024, gt=0)
    max_in_flight: int = Field(default=512, gt=0)
    deadline_s: float = Field(default=60.0, gt=0)
    drain_delay_s: float = Field(default=2.5, ge=0)
    drain_grace_s: float = Field(default=30.0, ge=0)
    governor_address: str = "127.0.0.1:7104"
    arbiter_address: str = "127.0.0.1:7102"
    registry_address: str = "127.0.0.1:7103"
    trainer_address: str = "127.0.0.1:7105"
    orchestrator_address: str = "127.0.0.1:7106"
