"""Reading along: the ledger's examples and what forgets them, for one who is in no group and acknowledges nothing.

The ledger tells all there is to tell: an example that was sent and is forgotten later has its tombstone behind it.
"""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from hivemind.servers.arbiter.bell import Bell
from hivemind.servers.arbiter.example import Example
from hivemind.servers.arbiter.lines import Tombstone
from hivemind.servers.arbiter.ports import PlatinumReader


@dataclass(frozen=True, slots=True)
class Idle:
    """All up to `sequence` was told. `ticket` hears of more."""

    sequence: int
    ticket: asyncio.Event


async def read_along(
    ledger: PlatinumReader, bell: Bell, per_tenant: int
) -> AsyncGenerator[Example | Tombstone | Idle, None]:
    """So many of the newest examples of each tenant (0: all), then every line that is stored, for ever.

    Where there is nothing to tell it says so; whoever asks on waits first. MeshError where the disk refuses.
    """
    start, at = await ledger.newest(per_tenant)
    while start:
        read = await ledger.read(start)
        start = start[len(read) :]
        for _, example in read:
            if example is not None:
                yield example
    while True:
        ticket = bell.ticket()
        found, at = await ledger.following(at)
        for line in found:
            yield line
        if not found:
            yield Idle(at, ticket)
