"""What any replica can tell of the loop, and how it hands a wish to the leader."""

import asyncio
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from hivemind.servers.common.errors import MeshError
from hivemind.servers.orchestrator.cycle import Cycle
from hivemind.servers.orchestrator.lease import Lease
from hivemind.servers.orchestrator.ports import Progress, Store, Wish

CYCLES_TOLD: Final = 10


@dataclass(frozen=True, slots=True)
class Status:
    """The loop as it is. `paused`: why; None: it is not. `leads`: whether the replica that answers does."""

    replica: str
    leads: bool
    progress: Progress | None
    paused: str | None
    cycles: Sequence[Cycle]


class Control:
    """One replica's way to the loop, whichever leads. `poll_s`: how often a cycle that was asked for is looked for."""

    def __init__(self, lease: Lease, store: Store, *, poll_s: float) -> None:
        self._lease, self._store, self._poll_s = lease, store, poll_s

    async def status(self) -> Status:
        """The loop as it is."""
        cycles, _ = await self._store.cycles(CYCLES_TOLD)
        progress, paused = await self._store.progress(), await self._store.paused()
        return Status(self._lease.name, bool(self._lease.held), progress, paused, cycles)

    async def pause(self, *, paused: bool, reason: str = "", idempotency_key: str) -> Status:
        """Pauses the loop on all replicas, or lets it go on."""
        await self._store.pause(paused=paused, reason=reason, idempotency_key=idempotency_key)
        return await self.status()

    async def run_cycle(self, steps: tuple[str, ...], *, idempotency_key: str) -> Cycle:
        """Has the leader run a cycle, and waits for it: as long as the call has time. LOOP_PAUSED, or PEER_UNAVAILABLE
        where nobody leads."""
        await self._check_runs()
        wish_id = await self._store.wish(Wish(uuid.uuid4().hex, steps), idempotency_key=idempotency_key)
        while True:
            cycle = await self._store.ran(wish_id)
            if cycle is not None:
                return cycle
            await self._check_runs()
            await asyncio.sleep(self._poll_s)

    async def _check_runs(self) -> None:
        if await self._store.paused() is not None:
            raise MeshError("LOOP_PAUSED", "the loop is paused; `hivemind orchestrator resume` lets it go on")
        if await self._store.progress() is None:
            raise MeshError("PEER_UNAVAILABLE", "nobody leads the loop at present; retry shortly", retry_after_s=2.0)
