"""What waits to be stored, and who waits for it."""

import asyncio

from hivemind.servers.router.recorder import Entry, Recorder
from hivemind.servers.router.records import Record


class Slow:
    """Stores when it is let."""

    def __init__(self) -> None:
        self.let = asyncio.Event()

    async def append(self, entries: list[Entry]) -> None:
        await self.let.wait()


async def test_whoever_builds_on_a_record_waits_until_it_is_stored_and_no_longer_than_told() -> None:
    store = Slow()
    recorder = Recorder(store, flush_s=0.0, on_drop=lambda _: None)
    recorder.add(Entry(Record("r1", 0.0, "t1", "", "OPENAI", "auto")))
    flushing = asyncio.create_task(recorder.flush())

    await recorder.stored("r1", within_s=0.05)
    assert recorder.find("r1") is not None
    waiting = asyncio.create_task(recorder.stored("r1", within_s=20.0))
    await asyncio.sleep(0)
    assert not waiting.done()
    store.let.set()
    await asyncio.wait_for(waiting, 5)

    assert recorder.find("r1") is None
    assert await flushing
    await recorder.stored("never-there", within_s=20.0)
