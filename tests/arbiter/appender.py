"""A process that appends to a ledger with many writers at once and says each id that it was told is stored.

python -m tests.arbiter.appender FOLDER NAME: prints `ready`, then `<key> <id>` a line, until it is killed.
"""

import asyncio
import itertools
import sys
import time
from pathlib import Path

from prometheus_client import CollectorRegistry

from hivemind.servers.arbiter.bell import Bell
from hivemind.servers.arbiter.folder import LedgerFolder
from hivemind.servers.arbiter.ledger import Ledger
from hivemind.servers.arbiter.platinum_metrics import PlatinumMetrics
from tests.arbiter.examples import example

WRITERS = 50


async def main(folder: Path, name: str) -> None:
    files = LedgerFolder(folder, rotate_bytes=200_000, clock=time.time)
    ledger = Ledger(files, Bell(), PlatinumMetrics(CollectorRegistry()), poll_s=0.1)
    await ledger.refresh()
    print("ready", flush=True)
    numbers = itertools.count()

    async def write() -> None:
        while True:
            key = f"{name}-{next(numbers)}"
            stored = await ledger.append(example(0, idempotency_key=key, draft=key * 20))
            print(key, stored.id, flush=True)

    await asyncio.gather(*(write() for _ in range(WRITERS)))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
