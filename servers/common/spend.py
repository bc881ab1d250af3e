"""Money of a server that spends it: blocks reserved ahead, holds taken from them without an RPC, batches of spend.

A hold is taken for the upper estimate of a call before it is made and settled to what it cost. What the Governor has
granted to this replica and is not yet spent is the only money that it may hold, so replicas together never exceed it.
"""

import asyncio
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

import structlog

from hivemind.servers.common.errors import MeshError

_log = structlog.get_logger()

BLOCK_CALLS: Final = 16
"""How many calls of the size at hand a block is asked for at least."""
BLOCK_CALLS_MOST: Final = 1024
BLOCK_S: Final = 1.0
"""A block that lasts less than this is followed by one of twice the calls, else by one of half: the RPC for a block
costs about as much as a request. What is left stays shared: the Governor grants an eighth of it at the most."""
IDLE_S: Final = 2.0
"""A block that nobody used for so long goes back to the Governor."""
REFUSAL_S: Final = 0.25
"""How long a refusal is remembered, so that an exhausted budget does not cost an RPC a request."""
OPEN_S: Final = 2.0
"""How long a Governor that did not answer is not asked again, where requests go on without it."""


@dataclass(frozen=True, slots=True)
class ReservationGrant:
    """What the Governor granted: money in micro-USD for `ttl_s` seconds, or `unlimited` where no budget applies."""

    reservation_id: str
    granted_micros: int
    ttl_s: float
    unlimited: bool


@dataclass(slots=True)
class SpendItem:
    """Sums of spend of one tenant on one alias since the last settlement."""

    tenant: str
    alias: str
    cost_micros: int = 0
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    master_cost_micros: int = 0


@dataclass(frozen=True, slots=True)
class ReservationUpdate:
    """What becomes of a reservation: how much of it was spent, and whether the rest goes back."""

    reservation_id: str
    spent_micros: int
    close: bool


@dataclass(frozen=True, slots=True)
class Settlement:
    """One batch for the Governor. The key makes sending it again safe."""

    key: str
    items: tuple[SpendItem, ...]
    updates: tuple[ReservationUpdate, ...]


class Keeper(Protocol):
    """The Governor, as far as money goes."""

    async def reserve(self, tenant: str, *, min_micros: int, wanted_micros: int) -> ReservationGrant:
        """Sets money aside; MeshError BUDGET_EXHAUSTED, or another reason if the Governor cannot be asked."""

    async def settle(self, settlement: Settlement) -> frozenset[str]:
        """Books spend; the answer names reservations that had ended. MeshError if the Governor cannot be asked."""


@dataclass(frozen=True, slots=True)
class BudgetView:
    """What a server knows of budgets: the tenants that have one (`*`: all), and whether to fail open.

    `known`: the Governor has spoken once; `fresh`: it would tell of a change now.
    """

    tenants: frozenset[str] = frozenset()
    known: bool = False
    fresh: bool = False
    fail_open: bool = False

    def applies(self, tenant: str) -> bool:
        """Whether a budget stands in the way of this tenant, as far as is known."""
        return not self.known or tenant in self.tenants or "*" in self.tenants


@dataclass(slots=True)
class _Block:
    reservation_id: str
    left: int
    expires_at: float
    renew_at: float


@dataclass(slots=True)
class _Pool:
    """The blocks of one tenant."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    blocks: list[_Block] = field(default_factory=list)
    held: int = 0
    unsettled: int = 0
    last_used: float = 0.0
    give_back: bool = False
    calls: int = BLOCK_CALLS
    granted_at: float = float("-inf")
    refusal: MeshError | None = None
    refused_from: int = 0
    refused_until: float = 0.0
    open_until: float = 0.0

    def take(self, grant: ReservationGrant, now: float) -> None:
        """Adds a block. It is given up a little before the Governor does, and renewed at half of its time."""
        expires_at, renew_at = now + 0.9 * grant.ttl_s, now + grant.ttl_s / 2
        self.granted_at = now
        self.blocks.append(_Block(grant.reservation_id, grant.granted_micros, expires_at, renew_at))
        self.give_back, self.refusal = False, None

    def wanted_calls(self, now: float) -> int:
        """For how many calls a block is asked for now."""
        short = now - self.granted_at < BLOCK_S
        self.calls = min(BLOCK_CALLS_MOST, 2 * self.calls) if short else max(BLOCK_CALLS, self.calls // 2)
        return self.calls

    def in_use(self, now: float) -> bool:
        """Whether it holds anything that must not be forgotten."""
        return bool(self.blocks or self.held or self.lock.locked() or self.open_until > now)

    def available(self, now: float) -> int:
        """Micro-USD that a new hold may take."""
        return sum(b.left for b in self.blocks if b.expires_at > now) - self.unsettled - self.held


@dataclass(slots=True)
class Hold:
    """Money held for one call. `settle` it exactly once; a hold of an unlimited tenant has no pool."""

    amount: int
    pool: _Pool | None = None

    @property
    def binds(self) -> bool:
        """Whether a budget stands behind it."""
        return self.pool is not None

    def settle(self, cost_micros: int) -> None:
        """Frees the hold and takes what the call cost from the block."""
        if self.pool is not None:
            self.pool.held -= self.amount
            self.pool.unsettled += cost_micros
            self.pool = None


class BudgetBook:
    """Holds and spend of this replica. `clock` is monotonic, in seconds."""

    def __init__(self, keeper: Keeper, *, view: Callable[[], BudgetView], clock: Callable[[], float]) -> None:
        self._keeper, self._view, self._clock = keeper, view, clock
        self._pools: dict[str, _Pool] = {}
        self._items: dict[tuple[str, str], SpendItem] = {}
        self._in_doubt: Settlement | None = None
        self._flushing = asyncio.Lock()

    async def hold(self, tenant: str, amount: int) -> Hold:
        """Holds `amount` micro-USD; MeshError BUDGET_EXHAUSTED, or BUDGET_UNAVAILABLE if that cannot be found out."""
        view = self._view()
        if amount == 0 or (view.fresh and not view.applies(tenant)):
            return Hold(0)
        pool = self._pools.get(tenant)
        if pool is None:
            pool = self._pools[tenant] = _Pool()
        now = self._clock()
        pool.last_used = now
        if now < pool.open_until:
            return Hold(0)
        if pool.available(now) < amount and not await self._extend(tenant, pool, amount):
            return Hold(0)
        pool.held += amount
        return Hold(amount, pool)

    def pressure(self, tenant: str) -> float:
        """1 while the Governor has lately refused this tenant money, else 0."""
        pool = self._pools.get(tenant)
        return float(pool is not None and pool.refusal is not None and self._clock() < pool.refused_until)

    def book(
        self, tenant: str, alias: str, *, cost_micros: int, prompt_tokens: int, completion_tokens: int, master_cost: int
    ) -> None:
        """Adds a request to the spend that the next settlement reports."""
        item = self._items.get((tenant, alias))
        if item is None:
            item = self._items[(tenant, alias)] = SpendItem(tenant, alias)
        item.cost_micros += cost_micros
        item.requests += 1
        item.prompt_tokens += prompt_tokens
        item.completion_tokens += completion_tokens
        item.master_cost_micros += master_cost

    async def flush(self, *, closing: bool = False) -> bool:
        """Sends what has gathered; True if the Governor has it all. With `closing` every block goes back."""
        async with self._flushing:
            if self._in_doubt is None:
                self._in_doubt = self._gather(closing=closing)
            if self._in_doubt is None:
                return True
            try:
                ended = await self._keeper.settle(self._in_doubt)
            except MeshError as error:
                _log.warning("settlement_waits", reason=error.reason)
                return False
            self._in_doubt = None
            for pool in self._pools.values():
                pool.blocks = [b for b in pool.blocks if b.reservation_id not in ended]
            return True

    async def run(self, interval_s: float) -> None:
        """Flushes for ever."""
        while True:
            await asyncio.sleep(interval_s)
            await self.flush()

    async def close(self) -> None:
        """Settles everything and gives every block back; gives up after a few tries."""
        for _ in range(10):
            if await self.flush(closing=True) and not self._items:
                return
            await asyncio.sleep(0.2)

    async def _extend(self, tenant: str, pool: _Pool, amount: int) -> bool:
        """Has the pool reach `amount`. False: no budget applies after all. Raises MeshError where it does not reach."""
        async with pool.lock:
            # looked at again after each grant: while it was waited for, a flush may have given other blocks back
            while (short := amount - pool.available(self._clock())) > 0:
                if pool.refusal is not None and self._clock() < pool.refused_until and short >= pool.refused_from:
                    raise pool.refusal
                wanted = amount * pool.wanted_calls(self._clock())
                try:
                    grant = await self._keeper.reserve(tenant, min_micros=short, wanted_micros=wanted)
                except MeshError as error:
                    return self._refused(tenant, pool, error, short)
                if grant.unlimited:
                    return False
                pool.take(grant, self._clock())
            return True

    def _refused(self, tenant: str, pool: _Pool, error: MeshError, short: int) -> bool:
        if error.reason == "BUDGET_EXHAUSTED":
            pool.give_back = True  # what is left here may be just what another replica needs
            pool.refusal, pool.refused_from = error, short
            pool.refused_until = self._clock() + REFUSAL_S
            raise error
        view = self._view()
        if view.fail_open or not view.applies(tenant):
            pool.open_until = self._clock() + OPEN_S
            return False
        message = "the budget of this tenant cannot be checked at present (fail closed); retry shortly"
        raise MeshError("BUDGET_UNAVAILABLE", message, retry_after_s=1.0) from error

    def _gather(self, *, closing: bool) -> Settlement | None:
        now = self._clock()
        updates = [u for pool in self._pools.values() for u in self._updates(pool, now, closing=closing)]
        items, self._items = tuple(self._items.values()), {}
        if not closing:
            self._pools = {t: p for t, p in self._pools.items() if p.in_use(now)}
        if not items and not updates:
            return None
        return Settlement(uuid.uuid4().hex, items, tuple(updates))

    def _updates(self, pool: _Pool, now: float, *, closing: bool) -> list[ReservationUpdate]:
        idle = pool.held == 0 and (closing or pool.give_back or now - pool.last_used > IDLE_S)
        updates: list[ReservationUpdate] = []
        kept: list[_Block] = []
        for block in pool.blocks:
            spent = min(block.left, pool.unsettled)
            pool.unsettled -= spent
            block.left -= spent
            close = idle or block.left == 0 or block.expires_at <= now
            if not close:
                kept.append(block)
            if close or spent or now >= block.renew_at:
                lifetime = block.expires_at - block.renew_at
                updates.append(ReservationUpdate(block.reservation_id, spent, close))
                block.expires_at, block.renew_at = now + 2 * lifetime, now + lifetime
        pool.blocks = kept
        if not kept:
            pool.unsettled = 0  # spent over the blocks; the items carry it
        return updates
