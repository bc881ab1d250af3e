"""The platinum stream: each group gets every example at least once and in order, what is old and what comes."""

import asyncio
import uuid
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Final

import structlog

from hivemind.servers.arbiter.bell import Bell, heard
from hivemind.servers.arbiter.example import Example
from hivemind.servers.arbiter.lines import Tombstone
from hivemind.servers.arbiter.platinum_metrics import PlatinumMetrics
from hivemind.servers.arbiter.ports import ConsumerGroups, Member, PlatinumReader, Taken
from hivemind.servers.arbiter.watching import Idle, read_along
from hivemind.servers.common.errors import MeshError

_log = structlog.get_logger()

RETRY_S: Final = 0.5
_LOW_WATER: Final = 256
"""With so many sequences left to send, more are asked for while those are sent."""


@dataclass(frozen=True, slots=True)
class Beat:
    """A sign of life: the newest sequence of the ledger, and how many examples the group has not acknowledged."""

    last_sequence: int
    lag: int


@dataclass(frozen=True, slots=True)
class Pace:
    """Times in seconds: between signs of life, and between looks for what other servers stored or were told of."""

    heartbeat_s: float
    poll_s: float


class PlatinumStreams:
    """Serves consumers. `bell` rings when examples were stored, and here when some were acknowledged."""

    def __init__(
        self,
        ledger: PlatinumReader,
        groups: ConsumerGroups,
        bell: Bell,
        metrics: PlatinumMetrics,
        pace: Pace,
        *,
        clock: Callable[[], float],
    ) -> None:
        self._ledger, self._groups, self._bell, self._metrics = ledger, groups, bell, metrics
        self._pace, self._clock = pace, clock
        self._ending = False

    async def follow(self, group: str, consumer: str, at_most: int) -> AsyncGenerator[Example | Beat, None]:
        """Examples for a consumer, and signs of life while there are none; never ends by itself.

        While ledger or Redis are away it waits. MeshError ETAG_MISMATCH when another stream of this consumer comes,
        DRAINING when the server ends.
        """
        member = Member(group, consumer, uuid.uuid4().hex, at_most)
        flow = _Flow(self._ledger, self._groups, member)
        try:
            beat_at = self._clock()
            while True:
                if self._ending:
                    raise MeshError("DRAINING", "the server is ending; join again", retry_after_s=1.0)
                ticket = self._bell.ticket()
                examples = await flow.next()
                known = self._ledger.forgettings
                for example in examples:
                    if known == self._ledger.forgettings or self._ledger.is_learnable(example.sequence):
                        self._metrics.delivered.inc()
                        yield example
                        beat_at = self._clock() + self._pace.heartbeat_s
                if examples or flow.has_more:
                    continue
                if self._clock() >= beat_at:
                    yield flow.beat()
                    beat_at = self._clock() + self._pace.heartbeat_s
                pause = RETRY_S if flow.is_lost else self._pace.poll_s
                await heard(ticket, min(pause, max(0.0, beat_at - self._clock())))
        finally:
            await flow.leave()

    async def watch(self, per_tenant: int) -> AsyncGenerator[Example | Tombstone | Beat, None]:
        """Examples for one who reads along, tombstones and signs of life; see watching.read_along."""
        told = read_along(self._ledger, self._bell, per_tenant)
        beat_at = self._clock()
        async with aclosing(told):
            async for found in told:
                if self._ending:
                    raise MeshError("DRAINING", "the server is ending; watch again", retry_after_s=1.0)
                if not isinstance(found, Idle):
                    yield found
                    continue
                if self._clock() >= beat_at:
                    yield Beat(found.sequence, 0)
                    beat_at = self._clock() + self._pace.heartbeat_s
                await heard(found.ticket, min(self._pace.poll_s, max(0.0, beat_at - self._clock())))

    def end(self) -> None:
        """Ends all streams, so that their consumers join another server."""
        self._ending = True
        self._bell.ring()

    async def acknowledge(self, group: str, sequences: Sequence[int]) -> int:
        """Says that examples were handled; answers up to where the group has handled all."""
        upto = await self._groups.acknowledge(group, sequences)
        self._bell.ring()
        return upto

    async def watch_lag(self, interval_s: float) -> None:
        """Keeps the metric of each group's lag, for ever, whether its consumers are there or not."""
        while True:
            with suppress(MeshError):
                progress = await self._groups.progress()
                self._metrics.show_lags(
                    {g: open_ + self._ledger.examples_above(fed) for g, (fed, open_) in progress.items()}
                )
            await asyncio.sleep(interval_s)


class _Flow:
    """One stream: what was taken and not read yet, and whether ledger and Redis answer."""

    def __init__(self, ledger: PlatinumReader, groups: ConsumerGroups, member: Member) -> None:
        self._ledger, self._groups, self._member = ledger, groups, member
        self._taken: deque[int] = deque()
        self._taking: asyncio.Task[Taken] | None = None
        self._resume, self._joining = "0", True
        self._fed, self._open = 0, 0
        self.is_lost = False

    @property
    def has_more(self) -> bool:
        """Whether there is something to read at once."""
        return bool(self._taken) and not self.is_lost

    def beat(self) -> Beat:
        """How the group stands, as far as is known."""
        with suppress(MeshError):
            return Beat(self._ledger.last_sequence, self._open + self._ledger.examples_above(self._fed))
        return Beat(0, self._open)

    async def next(self) -> list[Example]:
        """The next examples, none where there are none at present."""
        try:
            while not self._taken and await self._take():
                pass
            examples = await self._read()
        except MeshError as error:
            if error.reason not in ("STORE_UNAVAILABLE", "STORE_FULL"):
                raise
            if not self.is_lost:
                _log.warning("stream_waits", group=self._member.group, reason=error.reason, problem=error.message)
            self.is_lost = True
            return []
        self.is_lost = False
        return examples

    async def leave(self) -> None:
        """Gives back what the consumer holds."""
        with suppress(MeshError):
            if self._taking is not None:
                await self._taking  # else it might take once more after the consumer has left
        with suppress(MeshError):
            await self._groups.leave(self._member)

    async def _take(self) -> bool:
        """Takes more; answers whether that was asked for earlier and came to nothing, which may have changed since."""
        early = self._taking is not None
        self._taking = self._taking or self._ask()
        await asyncio.wait([self._taking])  # which leaves it running if this is cancelled
        task, self._taking = self._taking, None
        taken = task.result()
        if taken.fed > self._ledger.last_sequence:
            await self._compare(taken)
        self._heed(taken)
        self._taken.extend(taken.sequences)
        return early and not taken.sequences

    async def _compare(self, taken: Taken) -> None:
        """A group that is ahead of the ledger as it is after this look was fed from another one: it begins again."""
        await self._ledger.refresh()
        if taken.fed > self._ledger.last_sequence:
            _log.error("group_ahead_of_ledger", group=self._member.group, fed=taken.fed)
            await self._groups.restart(self._member.group)

    def _ask(self) -> asyncio.Task[Taken]:
        last = self._ledger.last_sequence
        take = self._groups.take(self._member, last=last, resume=self._resume, joining=self._joining)
        return asyncio.ensure_future(take)

    def _heed(self, taken: Taken) -> None:
        if taken.created:
            say = _log.info if self._joining else _log.warning  # while a consumer is there, only a lost Redis does that
            say("group_created", group=self._member.group, first_sequence=1)
        self._resume, self._joining = taken.resume, False
        self._fed, self._open = taken.fed, taken.open

    async def _read(self) -> list[Example]:
        if not self._taken:
            return []
        found = await self._ledger.read(tuple(self._taken))
        nothing = [sequence for sequence, example in found if example is None]
        if nothing:  # tombstones and forgotten examples: handled without the consumer
            await self._groups.acknowledge(self._member.group, nothing)
            self._open -= len(nothing)
        for _ in found:
            self._taken.popleft()
        if self._taken and len(self._taken) <= _LOW_WATER and self._taking is None:
            self._taking = self._ask()
        return [example for _, example in found if example is not None]
