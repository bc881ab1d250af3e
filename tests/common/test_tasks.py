"""Tasks are ended for certain."""

import asyncio

from hivemind.servers.common.tasks import end_tasks


async def test_a_task_that_loses_its_first_cancellation_is_ended_all_the_same() -> None:
    lost: list[str] = []

    async def stubborn() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            lost.append("once")
        await asyncio.sleep(60)

    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0)
    await end_tasks(task)

    assert lost == ["once"]
    assert task.cancelled()


async def test_the_outcome_of_a_task_that_has_ended_stays_in_it() -> None:
    async def work() -> int:
        return 42

    task = asyncio.create_task(work())
    await task
    await end_tasks(task)

    assert task.result() == 42
