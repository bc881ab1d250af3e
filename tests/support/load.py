"""A bounded load of chat completions, and how each ended."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import aiohttp

MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]


@dataclass
class Load:
    """Outcomes by status (0: the connection failed), and seconds of the good ones."""

    outcomes: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def failed(self) -> int:
        return sum(n for status, n in self.outcomes.items() if status != 200)

    def quantile(self, q: float) -> float:
        return sorted(self.seconds)[min(len(self.seconds) - 1, int(q * len(self.seconds)))]


async def run_load(
    base_url: str,
    *,
    model: str,
    seconds: float,
    concurrency: int,
    path: str = "/v1/chat/completions",
    meanwhile: Callable[[], Coroutine[Any, Any, None]] | None = None,
    headers: dict[str, str] | None = None,
    pause_s: float = 0.01,
    **fields: Any,
) -> Load:
    """Sends requests from `concurrency` clients for `seconds`; `meanwhile` runs beside them from the start."""
    load, end = Load(), time.monotonic() + seconds
    connector, timeout = aiohttp.TCPConnector(limit=concurrency), aiohttp.ClientTimeout(total=30)
    body = json.dumps({"model": model, "messages": MESSAGES, **fields}).encode()
    async with aiohttp.ClientSession(base_url, connector=connector, timeout=timeout, headers=headers) as session:

        async def worker() -> None:
            while time.monotonic() < end:
                await _one(session, load, path, body)
                await asyncio.sleep(pause_s)

        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(worker())
            if meanwhile is not None:
                group.create_task(meanwhile())
    return load


async def _one(session: aiohttp.ClientSession, load: Load, path: str, body: bytes) -> None:
    began = time.monotonic()
    try:
        async with session.post(path, data=body, headers={"Content-Type": "application/json"}) as answer:
            text = await answer.text()
    except (aiohttp.ClientError, TimeoutError) as error:
        load.outcomes[0] += 1
        load.failures.append(repr(error))
        return
    load.outcomes[answer.status] += 1
    if answer.status == 200:
        load.seconds.append(time.monotonic() - began)
    else:
        load.failures.append(text)
