"""Requests for different adapters take turns."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hivemind.servers.engine.turns import Turns


class Bench:
    """Requests that hold their slot until they are told to go."""

    def __init__(self, slots: int) -> None:
        self.turns = Turns(slots)
        self.running: list[tuple[int, str]] = []
        self.answers: list[bool] = []

    async def ask(self, number: int, key: str, go: asyncio.Event) -> None:
        async with self.turns.turn(key) as has_slot:
            self.answers.append(has_slot)
            if has_slot:
                self.running.append((number, key))
                try:
                    await go.wait()
                finally:
                    self.running.remove((number, key))


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def asked(bench: Bench, keys: str) -> list[tuple["asyncio.Task[None]", asyncio.Event]]:
    found = []
    for number, key in enumerate(keys):
        go = asyncio.Event()
        found.append((asyncio.ensure_future(bench.ask(number, key, go)), go))
        await settled()
    return found


@given(st.text("abc", min_size=1, max_size=12), st.integers(1, 4), st.data())
@settings(max_examples=60, deadline=None)
def test_one_adapter_at_a_time_and_the_longest_waiting_is_next(keys: str, slots: int, data: st.DataObject) -> None:
    async def scenario() -> None:
        bench = Bench(slots)
        requests = await asked(bench, keys)
        waiting = set(range(len(keys)))
        while waiting:
            running = sorted(bench.running)
            assert 0 < len(running) <= slots
            assert len({key for _, key in running}) == 1
            left = {n for n in waiting if n not in {r[0] for r in running}}
            if left and len(running) < slots:
                assert keys[min(left)] != running[0][1]  # a slot is free only because it is another's turn
            number = data.draw(st.sampled_from([n for n, _ in running]))
            first_left = min(left, default=None)
            requests[number][1].set()
            await settled()
            waiting.discard(number)
            if len(running) == 1 and first_left is not None:
                assert first_left in {n for n, _ in bench.running}
        await bench.turns.idle()

    asyncio.run(scenario())


async def test_a_newcomer_does_not_overtake_the_other_adapter_that_waits() -> None:
    bench = Bench(3)
    requests = await asked(bench, "aba")

    assert bench.running == [(0, "a")]
    requests[0][1].set()
    await settled()
    assert bench.running == [(1, "b")]
    for _, go in requests:
        go.set()
    await asyncio.gather(*(task for task, _ in requests))


@pytest.mark.parametrize("left", [0, 1])
async def test_whoever_leaves_makes_room(left: int) -> None:
    bench = Bench(1)
    requests = await asked(bench, "aab")
    requests[left][0].cancel()
    await settled()
    requests[1 - left][1].set()
    await settled()

    assert bench.running == [(2, "b")]
    requests[2][1].set()
    await asyncio.gather(*(task for task, _ in requests), return_exceptions=True)
    await bench.turns.idle()


async def test_a_place_that_was_given_and_not_taken_is_given_on() -> None:
    bench = Bench(1)
    requests = await asked(bench, "aa")
    requests[0][1].set()
    await asyncio.sleep(0)
    requests[1][0].cancel()  # its turn may have come in this very moment
    await asyncio.gather(*(task for task, _ in requests), return_exceptions=True)

    await asyncio.wait_for(bench.turns.idle(), 1)
    (last,) = await asked(bench, "b")
    assert bench.running == [(0, "b")]
    last[1].set()
    await last[0]


async def test_closing_sends_away_who_waits_and_nobody_else() -> None:
    bench = Bench(1)
    requests = await asked(bench, "ab")
    bench.turns.close()
    await settled()

    assert bench.answers == [True, False]
    assert bench.running == [(0, "a")]
    requests[0][1].set()
    await bench.turns.idle()
    assert not (await asked(bench, "c"))[0][0].cancelled()
    assert bench.answers == [True, False, False]
