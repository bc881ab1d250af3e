"""What adapters cost on the embedded engine; the rows that bench/adapters.py adds to its own.

An engine of its own with its front, as `hivemind up` starts it. Tokens a second: the base model, one adapter, four
adapters mixed, each with the same number of requests at once. Hot load: from the request for an adapter that is not
loaded to its answer. Meanwhile the base model is asked for one token, again and again, and again for as long after it,
while the same adapter, loaded now, is asked once: what the load costs others is the difference. The first load is that
of an engine just started with an empty cache.
"""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import httpx

from bench.gateway import free_port, started, until_connected

ROLE: Final = "implementer"
ADAPTERS: Final = 4
RANK: Final = 16
AT_ONCE: Final = 4
TOKENS: Final = 48
_QUESTION: Final = "Tell me a long story about the sea."
_OTHER: Final = "Which trees lose their leaves in autumn, and why?"
_THIRD: Final = "How is bread baked in a village without electricity?"

Figures = dict[str, list[float]]

ROWS: Final[dict[str, str]] = {
    "base_tokens_per_s": f"base model, {AT_ONCE} requests at once, tokens/s",
    "one_tokens_per_s": f"one adapter of rank {RANK} on all modules, {AT_ONCE} at once, tokens/s",
    "mixed_tokens_per_s": f"{ADAPTERS} adapters mixed, {AT_ONCE} at once, tokens/s",
    "first_load_ms": "first hot load of an engine, request to answer, ms",
    "later_load_ms": "later hot load, request to answer, ms",
    "load_one_token_ms": "one token of the base model during hot loads, every request, ms",
    "quiet_one_token_ms": "the same for as long without a load, ms",
    "first_gap_ms": "longest of them in each first load, ms",
    "first_quiet_gap_ms": "the same without a load, ms",
    "later_gap_ms": "longest of them in each later load, ms",
    "later_quiet_gap_ms": "the same without a load, ms",
}


def adapter_id(number: int) -> str:
    """The id of one of the benchmark's adapters."""
    return f"{ROLE}-v{number:06d}"


def write_adapters(folder: Path, count: int) -> None:
    """Adapters of all modules in every layer, with weights of the size of trained ones."""
    import numpy as np
    from safetensors.numpy import save_file

    from hivemind.servers.common.courier import wheel_file
    from hivemind.servers.engine.base_model import read_base_model

    base = read_base_model(wheel_file())
    for number in range(1, count + 1):
        values, tensors = np.random.default_rng(number), {}
        for block in range(base.blocks):
            for module, (outputs, inputs) in base.modules.items():
                name = f"base_model.model.model.layers.{block}.{module}.lora_"
                tensors[f"{name}A.weight"] = values.normal(0, inputs**-0.5, (RANK, inputs)).astype("float32")
                tensors[f"{name}B.weight"] = values.normal(0, 1e-3, (outputs, RANK)).astype("float32")
        target = folder / ROLE / f"v{number:06d}"
        target.mkdir(parents=True)
        save_file(tensors, target / "adapter_model.safetensors")
        (target / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": RANK}))


@contextmanager
def engine(home: Path) -> Iterator[str]:
    """An engine process with the adapters of `home`; its URL."""
    port = free_port()
    settings = {
        "HIVEMIND_HOME": str(home), "HIVEMIND_ADAPTERS": str(home / "adapters"), "HIVEMIND_HTTP_PORT": str(port),
        "HIVEMIND_METRICS_PORT": "0", "HIVEMIND_LOG_LEVEL": "WARNING", "HIVEMIND_ENGINE_ADAPTER_MIB": "1024",
    }  # fmt: skip
    command = [sys.executable, "-m", "hivemind.servers.engine"]
    with started(command, env={**os.environ, **settings}, stdout=subprocess.DEVNULL):
        until_connected(port)
        yield f"http://127.0.0.1:{port}"


async def chat(client: httpx.AsyncClient, model: str, tokens: int, *, question: str = _QUESTION) -> None:
    """One answer of just so many tokens; AssertionError if it is not one."""
    asked = [{"role": "user", "content": question}]
    body: dict[str, Any] = {"model": model, "messages": asked, "max_tokens": tokens, "ignore_eos": True}
    answer = await client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["completion_tokens"] == tokens


async def tokens_per_s(client: httpx.AsyncClient, models: list[str]) -> float:
    """Answers at once, one a model; all their tokens over the time until the last."""
    began = time.monotonic()
    await asyncio.gather(*(chat(client, model, TOKENS) for model in models))
    return len(models) * TOKENS / (time.monotonic() - began)


async def one_token_each(client: httpx.AsyncClient, until: "asyncio.Future[Any]") -> list[float]:
    """Milliseconds of requests for one token, one after the other until something is done; at least one."""
    times: list[float] = []
    while not times or not until.done():
        began = time.monotonic()
        await chat(client, "courier", 1)
        times.append((time.monotonic() - began) * 1000)
    return times


async def hot_load(client: httpx.AsyncClient, model: str, which: str, figures: Figures) -> None:
    """Has an adapter brought in while the base is asked, then asks both for as long without a load."""
    began = time.monotonic()
    load = asyncio.ensure_future(chat(client, model, 1, question=_OTHER))
    during = await one_token_each(client, load)
    await load
    took = time.monotonic() - began
    held, rest = (
        asyncio.ensure_future(chat(client, model, 1, question=_THIRD)),
        asyncio.ensure_future(asyncio.sleep(took)),
    )
    without = await one_token_each(client, asyncio.gather(held, rest))
    for key, values in {
        f"{which}_load_ms": [took * 1000], "load_one_token_ms": during, "quiet_one_token_ms": without,
        f"{which}_gap_ms": [max(during)], f"{which}_quiet_gap_ms": [max(without)],
    }.items():  # fmt: skip
        figures.setdefault(key, []).extend(values)


async def hot_loads(folder: Path, ids: list[str], figures: Figures) -> None:
    """Loads adapters into an engine just started, one after the other."""
    shutil.rmtree(folder / "cache" / "adapters", ignore_errors=True)
    with engine(folder) as url:
        async with httpx.AsyncClient(base_url=url, timeout=300) as client:
            await chat(client, "courier", 1)
            for number, model in enumerate(ids):
                await hot_load(client, model, "later" if number else "first", figures)


async def measure_engine(folder: Path, *, repeat: int) -> Figures:
    """Every figure of the engine. `folder` is empty and is filled with adapters."""
    write_adapters(folder / "adapters", ADAPTERS)
    ids = [adapter_id(n) for n in range(1, ADAPTERS + 1)]
    figures: Figures = {}
    for _ in range(repeat):
        await hot_loads(folder, ids, figures)
    with engine(folder) as url:
        async with httpx.AsyncClient(base_url=url, timeout=300) as client:
            for model in ("courier", *ids):
                await chat(client, model, 1)
            for _ in range(repeat):  # in turn, so that a busy machine slows all alike
                for key, models in (("base", ["courier"] * AT_ONCE), ("one", ids[:1] * AT_ONCE), ("mixed", ids)):
                    figures.setdefault(f"{key}_tokens_per_s", []).append(await tokens_per_s(client, models))
    return figures
