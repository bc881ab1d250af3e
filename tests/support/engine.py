"""The embedded engine for tests: the front in the test's own event loop, the real model behind it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from hivemind.servers.common.courier import wheel_file
from hivemind.servers.engine.base_model import read_base_model
from hivemind.servers.engine.engine import EngineOptions
from hivemind.servers.engine.generations import Generations, Limits
from hivemind.servers.engine.metrics import EngineMetrics
from hivemind.servers.engine.server import ServerOptions, running_engine

QUESTION = {"role": "user", "content": "Name three colours."}


@dataclass(frozen=True)
class TestEngine:
    __test__ = False
    home: Path
    port: int
    client: httpx.AsyncClient
    generations: Generations
    metrics: EngineMetrics

    @property
    def adapters(self) -> Path:
        return self.home / "adapters"

    async def chat(self, **body: Any) -> httpx.Response:
        asked = {"messages": [QUESTION], "temperature": 0, "max_tokens": 8, **body}
        return await self.client.post("/v1/chat/completions", json=asked)


@asynccontextmanager
async def engine_for_tests(
    home: Path, *, port: int = 0, slots: int = 2, waiting: int = 64, adapter_bytes: int = 1 << 28
) -> AsyncIterator[TestEngine]:
    """`home` has the adapters in `adapters/`."""
    model = wheel_file()
    options = ServerOptions(
        generation=EngineOptions(model, "127.0.0.1", port, threads=1, slots=slots, context=512 * slots),
        base=read_base_model(model),
        adapters=home / "adapters",
        cache=home / "cache",
        limits=Limits(slots, waiting, adapter_bytes),
        timeout_s=120,
        max_body=1 << 20,
    )
    (home / "adapters").mkdir(exist_ok=True)
    metrics = EngineMetrics()
    async with (
        running_engine(options, metrics) as engine,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{engine.port}", timeout=120) as client,
    ):
        yield TestEngine(home, engine.port, client, engine.generations, metrics)
