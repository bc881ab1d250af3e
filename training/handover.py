"""Hands each platinum example to the online learner: at least once, in order, one at a time.

An example is acknowledged when the Trainer has said that it holds it for good or will not have it. docs/adr/0013 says
why not when what was learnt from it is served. While Arbiter or Trainer are away nothing is held here: the stream is
left, and what was not acknowledged comes again.
"""

import asyncio
import random
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final, Protocol

import structlog
from prometheus_client import CollectorRegistry, Counter

from hivemind.servers.common.errors import MeshError
from hivemind.servers.common.turn import Turn

_log = structlog.get_logger()

ACCEPTED: Final = "accepted"
DUPLICATE: Final = "duplicate"
_REASONS_MAX: Final = 20


@dataclass(frozen=True, slots=True)
class Example:
    """A platinum example, as far as it is learnt from. `sequence`: its place in the ledger; `checked`: the answer is an
    Oracle's or the Arbiter's, not a person's."""

    id: str
    sequence: int
    tenant: str
    domain: str
    messages: tuple[Turn, ...]
    answer: str
    checked: bool


class Platinum(Protocol):
    """The Arbiter's stream of one consumer group. Methods may raise MeshError."""

    def examples(self) -> AsyncGenerator[Example | None, None]:
        """What was not acknowledged, then what comes; None is a sign of life. It never ends by itself."""

    async def acknowledge(self, sequence: int) -> None:
        """Says that an example was handled."""


class Learner(Protocol):
    """The Trainer's online learner."""

    async def submit(self, example: Example) -> str:
        """Gives it an example: ACCEPTED or DUPLICATE when it holds it for good, else the reason why it will not have
        it. MeshError if it cannot say."""


class BackOff:
    """How long to wait before the next try: doubling up to `most_s`, by chance between half of that and all of it."""

    def __init__(self, least_s: float, most_s: float, rng: random.Random) -> None:
        self._least_s, self._most_s, self._rng = least_s, most_s, rng
        self._tries = 0

    def next_s(self, at_least_s: float = 0.0) -> float:
        """Seconds to wait now. `at_least_s`: what the peer has asked for."""
        longest = min(self._most_s, self._least_s * 2.0 ** min(self._tries, 16))
        self._tries += 1
        return max(at_least_s, longest * self._rng.uniform(0.5, 1.0))

    def reset(self) -> None:
        """It has worked."""
        self._tries = 0


class HandoverMetrics:
    """Examples by what the Trainer said. Reasons are the Trainer's, the first 20 by name."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._submitted = Counter(
            "hivemind_examples_submitted",
            "Platinum examples given to the online learner, by what became of them.",
            ["outcome"],
            registry=registry,
        )
        self._known = {ACCEPTED, DUPLICATE}
        for outcome in (ACCEPTED, DUPLICATE):
            self._submitted.labels(outcome)

    def count(self, outcome: str) -> None:
        """Counts one example."""
        if len(self._known) < _REASONS_MAX:
            self._known.add(outcome)
        self._submitted.labels(outcome if outcome in self._known else "other").inc()


class Handover:
    """Runs for ever. `trouble`: what it waits for in one sentence; empty: nothing."""

    def __init__(self, platinum: Platinum, learner: Learner, metrics: HandoverMetrics, back_off: BackOff) -> None:
        self._platinum, self._learner, self._metrics, self._back_off = platinum, learner, metrics, back_off
        self._in_hand = asyncio.Lock()
        self._lost = False
        self.trouble = "the Arbiter has not answered yet"

    async def run(self) -> None:
        """Consumes the stream, and joins it again whenever that breaks or an example cannot be handed over."""
        while True:
            try:
                await self._consume()
            except MeshError as error:
                await asyncio.sleep(self._waits(error))

    async def drain(self, within_s: float) -> bool:
        """Lets the example in hand be acknowledged, and no other begin; whether it was in time."""
        try:
            async with asyncio.timeout(within_s):
                await self._in_hand.acquire()
        except TimeoutError:
            return False
        return True

    async def _consume(self) -> None:
        async with aclosing(self._platinum.examples()) as examples:
            async for example in examples:
                if example is not None:
                    async with self._in_hand:
                        await self._hand_over(example)
                self._works()

    async def _hand_over(self, example: Example) -> None:
        outcome = await self._learner.submit(example)
        self._metrics.count(outcome)
        if outcome not in (ACCEPTED, DUPLICATE):
            _log.warning("example_refused", id=example.id, sequence=example.sequence, reason=outcome)
        await self._platinum.acknowledge(example.sequence)
        _log.debug("example_handed_over", id=example.id, sequence=example.sequence, outcome=outcome)

    def _works(self) -> None:
        if self._lost:
            _log.info("handover_goes_on")
        self._lost, self.trouble = False, ""
        self._back_off.reset()

    def _waits(self, error: MeshError) -> float:
        if not self._lost:
            _log.warning("handover_waits", reason=error.reason, why=error.message)
        self._lost, self.trouble = True, error.message
        return self._back_off.next_s(error.retry_after_s or 0.0)
