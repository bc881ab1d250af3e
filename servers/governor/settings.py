"""Settings of the Governor."""

from pydantic import Field

from hivemind.servers.common.settings import ServerSettings


class GovernorSettings(ServerSettings):
    """What every server has, and the values that an empty store starts with."""

    grpc_port: int = 7104
    metrics_port: int = 7204
    enable_oracle_refinement: bool = Field(default=True, validation_alias="ENABLE_ORACLE_REFINEMENT")
    force_gpt4o_arbiter: bool = Field(default=False, validation_alias="FORCE_GPT4O_ARBITER")
    config_poll_s: float = Field(default=0.5, gt=0)
