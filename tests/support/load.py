"""A bounded load of chat completions, and how each ended."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

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
    meanwhile: Callable[[], Awaitable[None]] | None = None,
    headers: dict[str, str] | None = None,
    pause_s: float = 0.01,
    **fields: Any,
) -> Load:
    """Sends requests from `concurrency` clients for `seconds`; `meanwhile` runs beside them from the start."""
    load, end = Load(), time.monotonic() + seconds
    limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
    async with httpx.AsyncClient(base_url=base_url, timeout=30, limits=limits, headers=headers) as client:

        async def worker() -> None:
            while time.monotonic() < end:
                await _one(client, load, path, {"model": model, "messages": MESSAGES, **fields})
                await asyncio.sleep(pause_s)

        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(worker())
            if meanwhile is not None:
                group.create_task(meanwhile())  # type: ignore[arg-type]
    return load


async def _one(client: httpx.AsyncClient, load: Load, path: str, body: dict[str, Any]) -> None:
    began = time.monotonic()
    try:
        answer = await client.post(path, json=body)
    except httpx.HTTPError as error:
        load.outcomes[0] += 1
        load.failures.append(repr(error))
        return
    load.outcomes[answer.status_code] += 1
    if answer.status_code == 200:
        load.seconds.append(time.monotonic() - began)
    else:
        load.failures.append(answer.text)
