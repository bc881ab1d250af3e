"""Settings of the embedded engine, from the environment (HIVEMIND_*)."""

import os
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class EngineSettings(BaseSettings):
    """How the engine is set up. `courier`: empty for the model of the wheel, a .gguf file, or hf://owner/repo/file."""

    model_config = SettingsConfigDict(env_prefix="HIVEMIND_", extra="ignore", env_ignore_empty=True)

    home: Path = Path(".hivemind")
    adapters: Path = Field(default_factory=lambda data: data["home"] / "adapters")
    host: str = "127.0.0.1"
    http_port: int = Field(default=7300, ge=0, le=65535)
    metrics_port: int = Field(default=7207, ge=0, le=65535)
    log_level: str = "INFO"
    courier: str = ""
    max_body: int = Field(default=16 * 1024 * 1024, gt=0)
    engine_threads: int = Field(default_factory=lambda: os.cpu_count() or 1, gt=0)
    engine_slots: int = Field(default=4, gt=0)
    engine_context: int = Field(default=8192, gt=0)
    """Tokens of context over all slots; each slot has its share."""
    engine_max_waiting: int = Field(default=256, ge=0)
    """Requests that may wait for a slot; one more is answered with 429."""
    engine_adapter_mib: int = Field(default=256, gt=0)
    """What the adapters of a generation may take together; those used longest ago make room for others."""
    engine_timeout_s: float = Field(default=300.0, gt=0)
    """The longest that one request may take, once it has a slot."""
