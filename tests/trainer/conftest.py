"""A registry that takes all, and a Trainer with its state folder."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.redis_process import RedisProcess
from tests.support.scripted_registry import ScriptedRegistry
from tests.support.trainer_rig import Rig, end_all_jobs, settings_of, trainer


@pytest.fixture
async def registry() -> AsyncIterator[ScriptedRegistry]:
    running = ScriptedRegistry()
    await running.start()
    yield running
    await running.stop()


@pytest.fixture
def environment(empty_redis: RedisProcess, tmp_path: Path, registry: ScriptedRegistry) -> dict[str, str]:
    (tmp_path / "home").mkdir()
    return settings_of(tmp_path / "home", empty_redis.url, f"127.0.0.1:{registry.port}")


@pytest.fixture
async def rig(environment: dict[str, str]) -> AsyncIterator[Rig]:
    async with trainer(environment) as running:
        yield running
    end_all_jobs(running.home)
