"""Settings of the embedded engine, from the environment (HIVEMIND_*)."""

import os
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class EngineSettings(BaseSettings):
    """How the engine is set up. `courier`: empty for the model of the wheel, a .gguf file, or hf://owner/repo/file."""

    model_config = SettingsConfigDict(env_prefix="HIVEMIND_", extra="ignore", env_ignore_empty=True)

    home: Path = Path(".hivemind")
    host: str = "127.0.0.1"
    http_port: int = Field(default=7300, ge=0, le=65535)
    metrics_port: int = Field(default=7207, ge=0, le=65535)
    log_level: str = "INFO"
    courier: str = ""
    engine_threads: int = Field(default_factory=lambda: os.cpu_count() or 1, gt=0)
    engine_slots: int = Field(default=4, gt=0)
    engine_context: int = Field(default=8192, gt=0)
    """Tokens of context over all slots; each slot has its share."""
