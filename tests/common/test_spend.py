"""Blocks, holds and settlements of one server, against a Governor that keeps to the rules."""

import asyncio
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivemind.servers.common.errors import MeshError
from hivemind.servers.common.spend import BLOCK_CALLS, IDLE_S, BudgetBook, BudgetView, ReservationGrant, Settlement

VIEW = BudgetView(tenants=frozenset({"t"}), known=True, fresh=True)


@dataclass
class Governor:
    """Grants what is left; `down` makes it unreachable."""

    limit: int
    spent: int = 0
    held: dict[str, int] = field(default_factory=dict)
    down: bool = False
    calls: int = 0
    asked: list[int] = field(default_factory=list)
    settled: set[str] = field(default_factory=set)

    async def reserve(self, tenant: str, *, min_micros: int, wanted_micros: int) -> ReservationGrant:
        await asyncio.sleep(0)
        self.calls += 1
        self.asked.append(wanted_micros)
        if self.down:
            raise MeshError("PEER_UNAVAILABLE", "down")
        left = self.limit - self.spent - sum(self.held.values())
        if left < min_micros:
            raise MeshError("BUDGET_EXHAUSTED", "exhausted", retry_after_s=60)
        granted = max(min_micros, min(wanted_micros, left // 8))
        self.held[f"r{self.calls}"] = granted
        return ReservationGrant(f"r{self.calls}", granted, 60.0, False)

    async def settle(self, settlement: Settlement) -> frozenset[str]:
        await asyncio.sleep(0)
        if self.down:
            raise MeshError("PEER_UNAVAILABLE", "down")
        assert settlement.key not in self.settled
        self.settled.add(settlement.key)
        self.spent += sum(i.cost_micros for i in settlement.items)
        for update in settlement.updates:
            self.held[update.reservation_id] -= update.spent_micros
            assert self.held[update.reservation_id] >= 0
            if update.close:
                del self.held[update.reservation_id]
        return frozenset()


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def book_for(governor: Governor, clock: Clock, view: BudgetView = VIEW) -> BudgetBook:
    return BudgetBook(governor, view=lambda: view, clock=clock)


async def spend(book: BudgetBook, amount: int, cost: int) -> None:
    hold = await book.hold("t", amount)
    await asyncio.sleep(0)
    hold.settle(cost)
    book.book("t", "master", cost_micros=cost, prompt_tokens=1, completion_tokens=1, master_cost=cost)


async def test_many_calls_take_few_reservations() -> None:
    governor, clock = Governor(1_000_000), Clock()
    book = book_for(governor, clock)

    for _ in range(100):
        await spend(book, 100, 60)

    assert governor.calls <= 8


async def test_blocks_grow_with_the_demand_and_shrink_again() -> None:
    governor, clock = Governor(10**9), Clock()
    book = book_for(governor, clock)

    for _ in range(2000):  # in two seconds
        clock.now += 0.001
        await spend(book, 100, 100)
    in_a_rush = governor.calls
    for _ in range(200):  # in half an hour
        clock.now += 10
        await spend(book, 100, 100)
        await book.flush()
    await book.close()

    assert in_a_rush <= 10
    assert governor.spent == 220_000
    assert not governor.held
    assert governor.asked[-1] == BLOCK_CALLS * 100


@pytest.mark.parametrize("view", [BudgetView(known=True, fresh=True), VIEW])
async def test_what_needs_no_budget_asks_for_none(view: BudgetView) -> None:
    governor = Governor(0)
    book = book_for(governor, Clock(), view)

    hold = await book.hold("t" if not view.tenants else "somebody-else", 100)

    assert not hold.binds
    assert governor.calls == 0


async def test_an_idle_block_goes_back() -> None:
    governor, clock = Governor(1_000_000), Clock()
    book = book_for(governor, clock)
    await spend(book, 100, 60)
    await book.flush()
    assert sum(governor.held.values()) > 0

    clock.now += IDLE_S + 1
    await book.flush()

    assert governor.held == {}
    assert governor.spent == 60


async def test_spend_waits_while_the_governor_is_gone_and_is_sent_once() -> None:
    governor, clock = Governor(1_000_000), Clock()
    book = book_for(governor, clock)
    await spend(book, 100, 60)
    governor.down = True
    assert not await book.flush()
    await spend(book, 100, 60)
    assert not await book.flush()

    governor.down = False
    assert await book.flush()
    assert await book.flush()

    assert governor.spent == 120


@pytest.mark.parametrize(("fail_open", "answered"), [(False, False), (True, True)])
async def test_it_fails_closed_unless_told_otherwise(fail_open: bool, answered: bool) -> None:
    view = BudgetView(frozenset({"t"}), known=True, fresh=True, fail_open=fail_open)
    book = book_for(Governor(100, down=True), Clock(), view)

    if answered:
        assert not (await book.hold("t", 10)).binds
    else:
        with pytest.raises(MeshError) as refused:
            await book.hold("t", 10)
        assert refused.value.reason == "BUDGET_UNAVAILABLE"


async def test_closing_gives_everything_back() -> None:
    governor, clock = Governor(1_000_000), Clock()
    book = book_for(governor, clock)
    await spend(book, 100, 60)

    await book.close()

    assert governor.held == {}
    assert governor.spent == 60


@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(1, 400), st.floats(0, 1)), min_size=1, max_size=60),
    st.integers(0, 3000),
    st.integers(1, 9),
)
def test_two_replicas_never_exceed_the_limit(calls: list[tuple[int, int, float]], limit: int, flush_every: int) -> None:
    async def scenario() -> None:
        governor, clock = Governor(limit), Clock()
        books = [book_for(governor, clock), book_for(governor, clock)]
        bought = 0

        async def one(which: int, amount: int, share: float) -> None:
            nonlocal bought
            try:
                hold = await books[which].hold("t", amount)
            except MeshError:
                return
            cost = int(amount * share)
            bought += cost
            await asyncio.sleep(0)
            hold.settle(cost)
            books[which].book("t", "m", cost_micros=cost, prompt_tokens=0, completion_tokens=0, master_cost=0)

        for i in range(0, len(calls), flush_every):
            await asyncio.gather(*(one(*c) for c in calls[i : i + flush_every]))
            await asyncio.gather(*(b.flush() for b in books))
            clock.now += 0.5
            assert governor.spent + sum(governor.held.values()) <= limit
        await asyncio.gather(*(b.close() for b in books))
        assert governor.spent == bought <= limit
        assert governor.held == {}

    asyncio.run(scenario())
