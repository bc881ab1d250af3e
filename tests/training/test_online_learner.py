"""The online learner as a process of a real Trainer, on a tiny model: what it survives and whom it obeys."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hivemind.v1 import trainer_pb2 as pb
from tests.support.learners import QUICK, example, submit, until_learner
from tests.support.redis_process import RedisProcess
from tests.support.scripted_registry import ScriptedRegistry
from tests.support.trainer_rig import Rig, settings_of, trainer

pytest.importorskip("torch", reason="the extra train is not installed")
Learner = pb.OnlineLearner


@pytest.fixture
async def registry() -> AsyncIterator[ScriptedRegistry]:
    running = ScriptedRegistry()
    await running.start()
    yield running
    await running.stop()


@pytest.fixture
def environment(
    empty_redis: RedisProcess, tmp_path: Path, registry: ScriptedRegistry, tiny_base: Path
) -> dict[str, str]:
    (tmp_path / "home").mkdir()
    return {
        **settings_of(tmp_path / "home", empty_redis.url, f"127.0.0.1:{registry.port}"),
        **QUICK,
        "HIVEMIND_LEARN_BASE_WEIGHTS": str(tiny_base),
    }


@pytest.fixture
async def rig(environment: dict[str, str]) -> AsyncIterator[Rig]:
    async with trainer(environment) as running:
        yield running


async def test_what_is_submitted_is_learnt_and_published_as_a_challenger(rig: Rig, registry: ScriptedRegistry) -> None:
    await submit(rig, [example(n) for n in range(1, 17)])

    done = await until_learner(rig, lambda n: n.published > 0 and not n.waiting)

    assert done.learnt + done.held_out == 16
    assert done.adapter_id == "implementer-v000001"
    assert done.publish_time.seconds >= done.batch_close_time.seconds > 0
    assert registry.calls[0].path == "learner/implementer/publications/000001/adapter"
    assert registry.traffic[0].adapter_id == "implementer-v000001"
