"""What the adapter registry takes: `make bench NAME=adapters`.

A registry of its own, two where it says so, on a Redis of its own. State push: from the call of SetTraffic to the last
of 50 watchers that have the new state. Verdict: PreviewPromotion for a role of which a million outcomes were recorded.
"""

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import grpc

from bench.adapters_tokens import ROWS as ENGINE_ROWS
from bench.adapters_tokens import measure_engine
from bench.gateway import free_port, started, until_connected
from hivemind.v1 import adapter_registry_pb2 as pb
from hivemind.v1 import adapter_registry_pb2_grpc as rpc

HERE = Path(__file__).resolve().parent
ROLE = "implementer"
WATCHERS = 50
BATCH = 1000
_RANK = 16

Figures = dict[str, list[float]]


@contextmanager
def registry(folder: Path, redis_port: int) -> Iterator[int]:
    """A registry process; its port."""
    port = free_port()
    environment = {
        **os.environ, "HIVEMIND_HOME": str(folder), "REDIS_URL": f"redis://127.0.0.1:{redis_port}/0",
        "HIVEMIND_CONFIG": str(folder / "hivemind.toml"), "HIVEMIND_GRPC_PORT": str(port),
        "HIVEMIND_METRICS_PORT": str(free_port()), "HIVEMIND_LOG_LEVEL": "WARNING",
        "HIVEMIND_ADAPTERS": str(folder / "adapters"),
    }  # fmt: skip
    command = [sys.executable, "-m", "hivemind.servers.adapter_registry"]
    with started(command, env=environment, stdout=subprocess.DEVNULL):
        until_connected(port)
        yield port


@contextmanager
def redis(folder: Path) -> Iterator[int]:
    """A Redis as the mesh runs its own; its port."""
    from hivemind.servers.common.redis_server import find_redis, redis_command

    port = free_port()
    folder.mkdir()
    with started(redis_command(find_redis().path, folder, host="127.0.0.1", port=port), stdout=subprocess.DEVNULL):
        until_connected(port)
        yield port


@asynccontextmanager
async def stub_of(port: int) -> AsyncIterator[rpc.AdapterRegistryServiceStub]:
    """A client with a connection of its own."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        yield rpc.AdapterRegistryServiceStub(channel)


def write_adapter(folder: Path, shapes: dict[str, tuple[int, int]], seed: int) -> None:
    """An adapter of all seven modules in every layer."""
    import numpy as np
    from safetensors.numpy import save_file

    random, tensors = np.random.default_rng(seed), {}
    for name, (rows, columns) in shapes.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = random.normal(0, 0.02, (_RANK, columns)).astype("float32")
        tensors[f"base_model.model.{name}.lora_B.weight"] = random.normal(0, 0.02, (rows, _RANK)).astype("float32")
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    modules = sorted({name.rpartition(".")[2] for name in shapes})
    config = {"peft_type": "LORA", "r": _RANK, "lora_alpha": 16, "target_modules": modules}
    (folder / "adapter_config.json").write_text(json.dumps(config))


async def register(stub: Any, folder: Path, count: int, figures: Figures) -> list[str]:
    """Adapters of rank 16 on all modules; notes how long each took."""
    from hivemind.servers.adapter_registry.base_model import read_gguf
    from hivemind.servers.common.courier import WHEEL_SHA256, wheel_file

    base = await asyncio.to_thread(lambda: read_gguf("courier", wheel_file(), sha256=WHEEL_SHA256))
    ids = []
    for seed in range(count):
        write_adapter(folder / "incoming" / f"a{seed}", dict(base.shapes), seed)
        began = time.monotonic()
        adapter = await stub.RegisterAdapter(pb.RegisterAdapterRequest(role=ROLE, path=f"incoming/a{seed}"))
        if seed:  # the first one also waits until the courier's file has been looked at
            figures.setdefault("register_ms", []).append((time.monotonic() - began) * 1000)
        ids.append(adapter.id)
    return ids


async def state_push(changing: Any, watched: int, adapter: str, *, repeat: int) -> list[float]:
    """Milliseconds from a change at one registry until 50 watchers of the one at port `watched` have it."""
    found: list[float] = []
    async with clients_of(watched) as stubs:
        watches = [stub.WatchState(pb.WatchStateRequest(watcher="bench")) for stub in stubs]
        await asyncio.gather(*(watch.read() for watch in watches))
        for i in range(repeat):
            share = 0.01 if i % 2 else 0.05
            began = time.monotonic()
            change = changing.SetTraffic(pb.SetTrafficRequest(role=ROLE, adapter_id=adapter, traffic=share))
            await asyncio.gather(*(_until_share(watch, share) for watch in watches))
            found.append((time.monotonic() - began) * 1000)
            await change
        for watch in watches:
            watch.cancel()
    return found


@asynccontextmanager
async def clients_of(port: int) -> AsyncIterator[list[Any]]:
    """As many clients as there are watchers."""
    channels = [
        grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1)])
        for _ in range(WATCHERS)
    ]
    try:
        yield [rpc.AdapterRegistryServiceStub(channel) for channel in channels]
    finally:
        await asyncio.gather(*(channel.close() for channel in channels))


async def _until_share(watch: Any, share: float) -> None:
    while True:
        message = await watch.read()
        challenges = message.state.roles[0].challenges
        if challenges and abs(challenges[0].traffic - share) < 1e-9:
            return


async def record(stub: Any, adapter: str, count: int, figures: Figures) -> None:
    """Outcomes of champion and challenger, every tenth judged; notes how many a second were taken."""
    began = time.monotonic()
    for begin in range(0, count, BATCH):
        request = pb.RecordOutcomesRequest(outcomes=[_outcome(i, adapter) for i in range(begin, begin + BATCH)])
        await stub.RecordOutcomes(request)
    figures["recorded_per_s"] = [count / (time.monotonic() - began)]


def _outcome(i: int, adapter: str) -> pb.Outcome:
    outcome = pb.Outcome(request_id=f"r{i}", role=ROLE, adapter_id=adapter if i % 2 else "", cost_micros=100 + i % 7)
    outcome.latency.FromMicroseconds(50_000 + (i * 7919) % 400_000)
    outcome.failed = i % 101 == 0
    if i % 10 == 1:
        outcome.score = float(i % 20 == 1)
    return outcome


async def verdict(stub: Any, adapter: str, *, repeat: int) -> list[float]:
    """Milliseconds of a preview."""
    found = []
    for _ in range(repeat):
        began = time.monotonic()
        await stub.PreviewPromotion(pb.PreviewPromotionRequest(role=ROLE, adapter_id=adapter))
        found.append((time.monotonic() - began) * 1000)
    return found


async def measure_registry(folder: Path, *, outcomes: int, repeat: int) -> Figures:
    """Every figure of the registry."""
    figures: Figures = {}
    with ExitStack() as stack:
        redis_port = stack.enter_context(redis(folder / "redis"))
        first, second = (stack.enter_context(registry(folder, redis_port)) for _ in range(2))
        async with stub_of(first) as stub:
            ids = await register(stub, folder, 4, figures)
            figures["push_ms"] = await state_push(stub, first, ids[0], repeat=repeat)
            figures["push_other_ms"] = await state_push(stub, second, ids[0], repeat=repeat)
            await record(stub, ids[0], outcomes, figures)
            figures["verdict_ms"] = await verdict(stub, ids[0], repeat=repeat)
    return figures


ROWS: dict[str, str] = {
    "register_ms": f"register an adapter of rank {_RANK} on all modules, ms",
    "push_ms": f"state push to {WATCHERS} watchers, the last one, ms",
    "push_other_ms": f"state push to {WATCHERS} watchers of another registry, the last one, ms",
    "recorded_per_s": f"outcomes recorded a second, in batches of {BATCH}",
    "verdict_ms": "verdict (preview) of the role with these outcomes, ms",
}
TARGETS: dict[str, tuple[float, str]] = {"push_ms": (100, "under 100 ms"), "verdict_ms": (50, "under 50 ms")}


def main(arguments: list[str]) -> None:
    """Measures, prints a table in Markdown and writes bench/results/adapters.json."""
    parser = argparse.ArgumentParser(
        prog="adapters", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--outcomes", type=int, default=1_000_000)
    parser.add_argument("--repeat", type=int, default=40)
    parser.add_argument("--engine-repeat", type=int, default=3)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        figures = asyncio.run(measure_registry(Path(folder), outcomes=options.outcomes, repeat=options.repeat))
        figures |= asyncio.run(measure_engine(Path(folder) / "engine", repeat=options.engine_repeat))
    report(figures, {"outcomes": options.outcomes, "watchers": WATCHERS})


def report(figures: Figures, counts: dict[str, int]) -> None:
    """The table and the file."""
    summary: dict[str, Callable[[list[float]], float]] = {"median": statistics.median, "p95": p95, "max": max}
    print("| | median | p95 | most | target |")
    print("| --- | ---: | ---: | ---: | --- |")
    for key, title in {**ROWS, **ENGINE_ROWS}.items():
        if key in figures:
            cells = " | ".join(f"{f(figures[key]):.1f}" for f in summary.values())
            print(f"| {title} | {cells} | {TARGETS[key][1] if key in TARGETS else ''} |")
    medians = {key: statistics.median(values) for key, values in figures.items()}
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "cpu": platform.processor()}
    document = {
        "machine": machine, "counts": counts, "repetitions": figures, "median": medians,
        "p95": {key: p95(values) for key, values in figures.items()},
    }  # fmt: skip
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    (results / "adapters.json").write_text(json.dumps(document, indent=1) + "\n")


def p95(values: list[float]) -> float:
    """The 95th percentile."""
    return sorted(values)[min(len(values) - 1, int(0.95 * len(values)))]
