"""Candidates as they come in: demonstrations are stored at once, the others go redacted into the queue."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from hivemind.servers.arbiter.candidate import DEMONSTRATION, Candidate, Submitted
from hivemind.servers.arbiter.ports import CandidateQueue
from hivemind.servers.arbiter.refinement import Refinery


@dataclass(frozen=True, slots=True)
class Nominations:
    """Takes batches of candidates in. `on_drop` is told of those that a tenant does not consent to."""

    refinery: Refinery
    queue: CandidateQueue
    on_drop: Callable[[int], None]

    async def take(self, candidates: Sequence[Candidate]) -> list[Submitted]:
        """What became of each; MeshError where queue or ledger fails, and then the batch may be sent again."""
        consented = [c for c in candidates if self.refinery.consents(c.draft.tenant)]
        found = [Submitted.DROPPED] * (len(candidates) - len(consented))
        self.on_drop(len(found))
        found += [await self._demonstrated(c) for c in consented if c.cause == DEMONSTRATION]
        waiting = [c for c in consented if c.cause != DEMONSTRATION]
        clean = [replace(c, draft=await asyncio.to_thread(c.draft.redacted)) for c in waiting]
        return [*found, *await self.queue.submit(clean)]

    async def _demonstrated(self, candidate: Candidate) -> Submitted:
        stored = await self.refinery.demonstrate(candidate)
        return Submitted.ACCEPTED if stored else Submitted.DUPLICATE
