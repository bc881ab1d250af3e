"""Looking at a store again and again."""

import asyncio

import structlog

from hivemind.servers.common.errors import MeshError
from hivemind.servers.common.looking import keep_looking
from hivemind.servers.common.tasks import end_tasks


async def test_an_absent_store_is_outlived_and_told_of_once_a_time() -> None:
    away = [False, True, True, False, True, False]
    looks, done = 0, asyncio.Event()

    async def look() -> None:
        nonlocal looks
        looks += 1
        if looks == len(away):
            done.set()
        if away[min(looks, len(away)) - 1]:
            raise MeshError("STORE_UNAVAILABLE", "away")

    with structlog.testing.capture_logs() as logs:
        task = asyncio.create_task(keep_looking(look, every_s=0.001))
        async with asyncio.timeout(5):
            await done.wait()
        await end_tasks(task)

    assert [entry["event"] for entry in logs] == ["store_lost", "store_lost"]


async def test_a_sign_that_comes_during_a_look_has_it_look_again_at_once() -> None:
    sooner, again, looks = asyncio.Event(), asyncio.Event(), 0

    async def look() -> None:
        nonlocal looks
        looks += 1
        if looks == 1:
            sooner.set()
        else:
            again.set()

    task = asyncio.create_task(keep_looking(look, every_s=3600.0, sooner=sooner))
    async with asyncio.timeout(5):
        await again.wait()
    await end_tasks(task)

    assert looks == 2
