"""Rounds of calls that go out together, and how long a round may take, so that the last call of a strategy has time."""

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Final, TypeVar

from hivemind.servers.router.roles import Caller, Reply, RoleFailed

T = TypeVar("T")

ROUND_SHARE: Final = 0.6
"""Of the time left, what a round that others follow may take: after three such rounds the last call has 6% of all."""
GRACE_LEAST_S: Final = 1.0


def round_s(caller: Caller) -> float:
    """The most seconds that a round may take which begins now."""
    return caller.time_left_s() * ROUND_SHARE


async def within(calls: Sequence[Awaitable[T]], seconds: float) -> list[T | None]:
    """The results of calls in their order, None for those that take longer; they are cancelled."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)
    finally:
        await _cancelled(tasks)
    return [None if task.cancelled() else task.result() for task in tasks]


async def attempted(call: Awaitable[Reply]) -> Reply | RoleFailed:
    """What a call brought, its failure as a value."""
    try:
        return await call
    except RoleFailed as error:
        return error


async def quorum(
    calls: Sequence[Awaitable[Reply]], *, need: int, caller: Caller, what: str
) -> tuple[list[Reply], list[str]]:
    """The replies in their order, and what failed. RoleFailed if fewer than `need` came.

    When `need` have answered, stragglers get as long again (a second at least), and never more than a round's time;
    then they are cancelled.
    """
    loop = asyncio.get_running_loop()
    began, until = loop.time(), loop.time() + round_s(caller)
    tasks = [asyncio.ensure_future(attempted(call)) for call in calls]
    pending: set[asyncio.Future[Reply | RoleFailed]] = set(tasks)
    grace = False
    try:
        while pending and loop.time() < until:
            _, pending = await asyncio.wait(pending, timeout=until - loop.time(), return_when=asyncio.FIRST_COMPLETED)
            if not grace and _answered(tasks) >= need:
                until = min(until, loop.time() + max(GRACE_LEAST_S, loop.time() - began))
                grace = True
    finally:
        await _cancelled(tasks)
    replies, degraded = [], []
    for i, task in enumerate(tasks, 1):
        result = None if task.cancelled() else task.result()
        if isinstance(result, Reply):
            replies.append(result)
        else:
            degraded.append(f"{what}: call {i} of {len(tasks)} {why(result)}")
    if len(replies) < min(need, len(tasks)):
        raise RoleFailed("; ".join(degraded))
    return replies, degraded


def why(result: RoleFailed | None) -> str:
    """Why a call of a round brought nothing."""
    return "was too slow" if result is None else f"failed: {result}"


async def _cancelled(tasks: Sequence["asyncio.Future[T]"]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _answered(tasks: Sequence["asyncio.Future[Reply | RoleFailed]"]) -> int:
    return sum(t.done() and not t.cancelled() and isinstance(t.result(), Reply) for t in tasks)
