"""Settings of the adapter registry server."""

from pydantic import Field

from hivemind.servers.common.settings import ServerSettings


class AdapterRegistrySettings(ServerSettings):
    """What every server has, with this server's own. Times are in seconds.

    `text_adapter_path`: the foundational adapter, a folder under the adapters' folder or HIVEMIND_HOME. `autopromote`:
    the roles, separated by commas, whose champion may change without a person. `courier`: as the engine has it.
    """

    grpc_port: int = 7103
    metrics_port: int = 7203
    text_adapter_path: str = "foundational/champion_v1"
    courier: str = ""
    autopromote: str = ""
    autopromote_cooldown_s: float = Field(default=6 * 3600.0, ge=0)
    autopromote_max_per_day: int = Field(default=2, ge=1)
    guard_every_s: float = Field(default=5.0, gt=0, le=30)
    state_poll_s: float = Field(default=0.05, gt=0)
    catalogue_poll_s: float = Field(default=1.0, gt=0)
