"""Fixtures that more than one folder uses."""

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.support.redis_process import RedisProcess, redis_process

settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")  # a slow or busy machine is no fault of the code


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    """One Redis a module; tests take a flushed one by `empty_redis`."""
    with redis_process(tmp_path_factory.mktemp("redis")) as running:
        yield running


@pytest.fixture
def empty_redis(redis_server: RedisProcess) -> RedisProcess:
    redis_server.client.flushall()
    return redis_server
