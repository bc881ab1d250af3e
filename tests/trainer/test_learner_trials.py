"""Which versions of an online learner go on challenging: the rule, and the keeper that follows it before a registry."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from hivemind.servers.common.channels import peer_channel
from hivemind.servers.common.redis_client import redis_client
from hivemind.servers.trainer.json_file import write_object
from hivemind.servers.trainer.learner import Limits, Version
from hivemind.servers.trainer.learner_folder import LearnerFolder
from hivemind.servers.trainer.learner_keeper import Household, LearnerKeeper, Terms
from hivemind.servers.trainer.learner_process import LearnerProcess
from hivemind.servers.trainer.learner_store import RedisLearners
from hivemind.servers.trainer.learner_trials import over
from hivemind.servers.trainer.metrics import LearnerMetrics, TrainerMetrics
from hivemind.servers.trainer.registry_client import RegistryClient
from tests.support.redis_process import RedisProcess
from tests.support.scripted_registry import ScriptedRegistry
from tests.support.waiting import until

ROLE = "implementer"
TRIAL_S = 120.0


def ended(
    published: dict[str, float], *, now: float, champion: str = "", challengers: Collection[str] | None = None
) -> list[str]:
    versions = [Version(name, at) for name, at in published.items()]
    contenders = set(published) - {champion} if challengers is None else challengers
    return over(versions, champion, contenders, now=now, trial_s=TRIAL_S)


def test_the_eldest_within_its_trial_and_the_newest_stay_and_those_between_them_end() -> None:
    assert ended({"v1": 0, "v2": 15, "v3": 30, "v4": 45}, now=50) == ["v2", "v3"]


def test_the_eldest_ends_with_its_trial_and_the_next_one_begins_its_own() -> None:
    assert ended({"v1": 0, "v8": 105}, now=TRIAL_S) == ["v1"]
    assert ended({"v1": 0, "v8": 105, "v9": 120, "v10": 135}, now=136) == ["v1", "v9"]


def test_the_newest_challenges_until_another_one_comes() -> None:
    assert ended({"v1": 0}, now=10 * TRIAL_S) == []
    assert ended({"v1": 0, "v2": 600}, now=601) == ["v1"]


def test_a_champion_has_had_its_trial_and_so_has_what_it_learnt_from() -> None:
    assert ended({"v1": 0, "v2": 15, "v3": 30, "v4": 45}, now=50, champion="v2") == ["v1", "v2"]
    assert ended({"v1": 0}, now=50, champion="v1") == ["v1"]


def test_one_that_was_rejected_does_not_hold_the_place_of_the_eldest() -> None:
    assert ended({"v1": 0, "v2": 15, "v3": 30}, now=31, challengers={"v2", "v3"}) == ["v1"]


def test_the_newest_stays_while_it_waits_for_its_share_of_the_traffic() -> None:
    assert ended({"v1": 0, "v2": 15}, now=16, challengers={"v1"}) == []


@given(st.lists(st.floats(0, 1000), max_size=8), st.floats(0, 2000), st.integers(-1, 8))
def test_never_more_than_two_go_on_and_the_newest_does_unless_it_is_champion(
    times: list[float], now: float, place: int
) -> None:
    published = {f"v{n}": at for n, at in enumerate(sorted(times))}
    champion = f"v{place}"

    going_on = set(published) - set(ended(published, now=now, champion=champion))

    assert len(going_on) <= 2
    assert champion not in going_on
    if published and champion != list(published)[-1]:
        assert list(published)[-1] in going_on


@dataclass
class Kept:
    """A keeper at work before a scripted registry. `now`: its Unix time."""

    folder: LearnerFolder
    registry: ScriptedRegistry
    learners: RedisLearners
    now: float = 0.0

    async def publish(self, number: int, *, at: float) -> str:
        """Hands a publication over as the learner does; the version, when the keeper has answered."""
        self.now = at
        where = self.folder.path / "publications" / f"{number:06d}"
        told = {"key": f"online-{number}", "role": ROLE, "parent": "", "closed": 0.0, "outcomes": []}
        write_object(where / "publication.json", told)
        await self.until((where / "published.json").exists, f"publication {number} is answered")
        return f"{ROLE}-v{number:06d}"

    async def until(self, condition: Callable[[], object], what: str) -> None:
        await asyncio.to_thread(until, condition, what=what)

    async def until_listed(self, *versions: str) -> None:
        end = time.monotonic() + 10
        while [v.adapter_id for v in await self.learners.versions(ROLE)] != list(versions):
            assert time.monotonic() < end, f"{await self.learners.versions(ROLE)} is not {versions}"
            await asyncio.sleep(0.02)

    def retired(self) -> list[str]:
        return [r.adapter_id for r in self.registry.traffic if not (r.traffic or r.shadow)]


@asynccontextmanager
async def keeping(registry: ScriptedRegistry, url: str, home: Path) -> AsyncIterator[Kept]:
    redis, channel = redis_client(url, timeout_s=5), peer_channel(f"127.0.0.1:{registry.port}")
    metrics = CollectorRegistry()
    learners, folder = RedisLearners(redis, Limits(10, 10)), LearnerFolder(home, ROLE)
    kept = Kept(folder, registry, learners)
    household = Household(
        learners, RegistryClient(channel, api_key=None, traffic=0.01), folder,
        LearnerProcess(folder.path, (sys.executable, "-c", ""), {}, 1.0),
        LearnerMetrics(metrics, TrainerMetrics(metrics)),
    )  # fmt: skip
    terms = Terms(poll_s=0.02, lease_s=5, retry_s=1, champion_s=0.02, trial_s=TRIAL_S, shadow=False)
    keeper = LearnerKeeper(household, terms, owner="one", adapters=str(home / "adapters"), clock=lambda: kept.now)
    task = asyncio.create_task(keeper.run())
    try:
        yield kept
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await channel.close()
        await redis.aclose()


@pytest.fixture
async def kept(registry: ScriptedRegistry, empty_redis: RedisProcess, tmp_path: Path) -> AsyncIterator[Kept]:
    async with keeping(registry, empty_redis.url, tmp_path) as running:
        yield running


async def test_the_first_version_challenges_on_while_those_after_it_come_and_go(kept: Kept) -> None:
    first, second, third = [await kept.publish(n, at=15.0 * n) for n in (1, 2, 3)]

    await kept.until_listed(first, third)

    assert kept.retired() == [second]


async def test_a_trial_that_is_over_ends_though_nothing_new_is_published(kept: Kept) -> None:
    first, second = await kept.publish(1, at=15), await kept.publish(2, at=30)

    kept.now = 15 + TRIAL_S

    await kept.until_listed(second)
    assert kept.retired() == [first]


async def test_a_version_that_became_champion_makes_room_and_keeps_its_office(kept: Kept) -> None:
    first = await kept.publish(1, at=15)
    kept.registry.promote(first)
    await kept.until_listed()

    second, third, fourth = [await kept.publish(n, at=15.0 * n) for n in (2, 3, 4)]

    await kept.until_listed(second, fourth)
    assert kept.retired() == [third]


async def test_a_version_that_was_rejected_makes_room_and_is_not_retired(kept: Kept) -> None:
    first, second = await kept.publish(1, at=15), await kept.publish(2, at=30)
    kept.registry.challengers.discard(first)

    third = await kept.publish(3, at=45)

    await kept.until_listed(second, third)
    assert kept.retired() == []


async def test_a_challenge_that_the_registry_will_not_end_is_left_to_it(kept: Kept) -> None:
    first, second = await kept.publish(1, at=15), await kept.publish(2, at=30)
    kept.registry.full = True

    kept.now = 15 + TRIAL_S

    await kept.until_listed(second)
    assert first in kept.registry.challengers


async def test_another_keeper_goes_on_with_the_trials_under_way(
    registry: ScriptedRegistry, empty_redis: RedisProcess, tmp_path: Path
) -> None:
    async with keeping(registry, empty_redis.url, tmp_path) as before:
        first, second = await before.publish(1, at=15), await before.publish(2, at=30)
        await before.until_listed(first, second)

    async with keeping(registry, empty_redis.url, tmp_path) as after:
        third = await after.publish(3, at=45)
        await after.until_listed(first, third)

    assert after.retired() == [second]


async def test_a_version_that_is_published_again_keeps_its_time(kept: Kept) -> None:
    await kept.learners.published(ROLE, "implementer-v000001", 15.0)
    await kept.learners.published(ROLE, "implementer-v000001", 99.0)

    assert await kept.learners.versions(ROLE) == [Version("implementer-v000001", 15.0)]
