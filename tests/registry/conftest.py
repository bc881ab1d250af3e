"""What the registry's tests share."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hivemind.servers.adapter_registry.base_model import BaseModel, read_gguf
from hivemind.servers.common.courier import WHEEL_SHA256, wheel_file
from tests.support.redis_process import RedisProcess
from tests.support.registry import Rig, running_registry


@pytest.fixture(scope="session")
def base() -> BaseModel:
    """The courier, as its own file describes it."""
    return read_gguf("courier", wheel_file(), sha256=WHEEL_SHA256)


@pytest.fixture
async def rig(empty_redis: RedisProcess, tmp_path: Path, base: BaseModel) -> AsyncIterator[Rig]:
    async with running_registry(empty_redis, tmp_path, base) as made:
        yield made
