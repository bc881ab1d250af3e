"""The platinum ledger and its stream: `make bench NAME=arbiter`.

appends   64 writers at once on one ledger, against one write and one sync for each of the same lines (the floor of
          whoever syncs every record), in turn; p99 of an append against p99 of one such sync. Once on this machine's
          disk, and once on the same with each sync stretched to the time that a usual disk takes: where a sync takes
          hardly more than the work on a line, sharing it saves little
start     the server on a ledger of a million lines: time until it is ready, and its memory
stream    a backlog of 100,000 examples to one consumer that acknowledges, against a bare grpc.aio server that holds the
          same messages ready and only sends them; memory of our server before, at most, and after
delay     from the end of an append to the arrival of the example at a consumer that waits for it

All of it in one run on one machine, each pair in turn. Nothing asserts a time.
"""

import argparse
import asyncio
import importlib.metadata
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import psutil
import uvloop
from prometheus_client import CollectorRegistry

from hivemind.servers.arbiter.bell import Bell
from hivemind.servers.arbiter.disk import RealDisk
from hivemind.servers.arbiter.example import NewExample, Provenance
from hivemind.servers.arbiter.folder import LedgerFolder
from hivemind.servers.arbiter.ledger import Ledger
from hivemind.servers.arbiter.platinum import build_platinum
from hivemind.servers.arbiter.platinum_metrics import PlatinumMetrics
from hivemind.servers.arbiter.refining import build_refining
from hivemind.servers.arbiter.service import ArbiterService
from hivemind.servers.arbiter.settings import ArbiterSettings
from hivemind.servers.arbiter.translate import example_message
from hivemind.servers.common.catalogue import Catalogue
from hivemind.servers.common.interceptors import CallPolicy, MeshInterceptor
from hivemind.servers.common.logs import configure_logs
from hivemind.servers.common.metrics import RpcMetrics
from hivemind.servers.common.redis_client import redis_client
from hivemind.servers.common.redis_server import find_redis, redis_command
from hivemind.servers.common.turn import Turn
from hivemind.v1 import arbiter_pb2 as pb
from hivemind.v1 import arbiter_pb2_grpc as rpc

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
"""Where the result goes, and what is measured lies meanwhile: on the checkout's disk."""
WRITERS = 64
FOUND_SYNC_S = 0.0019
"""The sync of the disk for which the targets were set: 526 records a second, each with its own."""
ROTATE_BYTES = 256 << 20
IN_FLIGHT, ACK_EVERY = 2048, 512
Figures = dict[str, list[float]]


class SlowDisk(RealDisk):
    """This machine's disk, but a sync takes at least as long as FOUND_SYNC_S."""

    def sync(self, fd: int) -> None:
        """Syncs, and waits for the rest of the time."""
        end = time.perf_counter() + FOUND_SYNC_S
        super().sync(fd)
        time.sleep(max(0.0, end - time.perf_counter()))


class Unsynced(RealDisk):
    """For making a large ledger quickly."""

    def sync(self, fd: int) -> None:
        """Leaves it to the system."""


def example(number: int) -> NewExample:
    """An example of about a kilobyte."""
    return NewExample(
        messages=(Turn("user", f"Question {number}: " + "why is the sky blue and the evening red? " * 4),),
        draft="Because of the sea. " * 6,
        final_platinum_answer="Short waves are scattered more by air. " * 5,
        refined_by="ORACLE",
        provenance=Provenance(
            draft_model="courier", oracle_model="deepseek-chat", score=0.9, draft_score=0.3,
            decisions=("The Oracle explained scattering.",), changes="the cause", cost_micros=150, latency_s=1.2,
        ),
        tenant=f"tenant-{number % 10}", domain=("code", "law", "physics")[number % 3], confidence=0.9,
        licence="operator", consent="tenant", origin="traffic", request_id=f"request-{number}",
        idempotency_key=f"key-{number}",
    )  # fmt: skip


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which that share lies."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def sync_each(folder: Path, count: int, disk: RealDisk) -> tuple[float, list[float]]:
    """Writes lines of the ledger one by one, each with its sync: records a second, and the seconds of each."""
    made = folder / "lines"
    files = LedgerFolder(made, rotate_bytes=ROTATE_BYTES, clock=time.time, disk=Unsynced())
    files.commit([example(n) for n in range(count)])
    lines = (made / "training_metadata.jsonl").read_bytes().splitlines(keepends=True)
    fd = os.open(folder / "each.jsonl", os.O_WRONLY | os.O_CREAT)
    took = []
    began = time.perf_counter()
    for line in lines:
        start = time.perf_counter()
        os.write(fd, line)
        disk.sync(fd)
        took.append(time.perf_counter() - start)
    seconds = time.perf_counter() - began
    os.close(fd)
    return count / seconds, took


async def append_all(folder: Path, count: int, disk: RealDisk) -> tuple[float, list[float]]:
    """The same lines by 64 writers at once through the ledger."""
    files = LedgerFolder(folder / "ledger", rotate_bytes=ROTATE_BYTES, clock=time.time, disk=disk)
    ledger = Ledger(files, Bell(), PlatinumMetrics(CollectorRegistry()), poll_s=1.0)
    await ledger.refresh()
    waiting, took = iter([example(n) for n in range(count)]), []

    async def write() -> None:
        for new in waiting:
            start = time.perf_counter()
            await ledger.append(new)
            took.append(time.perf_counter() - start)

    began = time.perf_counter()
    await asyncio.gather(*(write() for _ in range(WRITERS)))
    seconds = time.perf_counter() - began
    await ledger.close()
    return count / seconds, took


def measure_appends(figures: Figures, disk: RealDisk, prefix: str, *, each: int, grouped: int) -> None:
    """One repetition of both."""
    with tempfile.TemporaryDirectory(dir=RESULTS) as folder:
        for name, (rate, took) in (
            ("sync_each", sync_each(Path(folder), each, disk)),
            ("append", uvloop.run(append_all(Path(folder), grouped, disk))),
        ):
            note(
                figures,
                **{f"{prefix}{name}_per_s": rate},
                **{f"{prefix}{name}_p{p}_ms": percentile(took, p / 100) * 1e3 for p in (50, 99)},
            )


def note(figures: Figures, **values: float) -> None:
    """Notes one repetition of some figures."""
    for name, value in values.items():
        figures.setdefault(name, []).append(value)


def make_ledger(folder: Path, lines: int) -> None:
    """A large ledger, as a server would have written it."""
    files = LedgerFolder(folder, rotate_bytes=ROTATE_BYTES, clock=time.time, disk=Unsynced())
    for start in range(0, lines, 1000):
        files.commit([example(n) for n in range(start, min(lines, start + 1000))])
    os.sync()


def free_port() -> int:
    """A port that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


@contextmanager
def started(command: list[str], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """A process that is ended with the block."""
    process = subprocess.Popen(command, **options)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextmanager
def redis(folder: Path) -> Iterator[str]:
    """A Redis as the mesh runs it."""
    folder.mkdir(exist_ok=True)
    port = free_port()
    command = redis_command(find_redis().path, folder, host="127.0.0.1", port=port)
    with started(command, stdout=subprocess.DEVNULL):
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.02)
        yield f"redis://127.0.0.1:{port}/0"


@contextmanager
def server(folder: Path, redis_url: str) -> Iterator[tuple[str, psutil.Process, float]]:
    """The Arbiter on a ledger: its address, its process, and seconds from its start until it was ready."""
    grpc_port, metrics_port = free_port(), free_port()
    environment = {
        **os.environ, "REDIS_URL": redis_url, "HIVEMIND_DATASETS": str(folder), "HIVEMIND_GRPC_PORT": str(grpc_port),
        "HIVEMIND_METRICS_PORT": str(metrics_port), "HIVEMIND_LOG_LEVEL": "WARNING",
    }  # fmt: skip
    began = time.monotonic()
    with started([sys.executable, "-m", "hivemind.servers.arbiter"], env=environment) as process:
        wait_ready(f"http://127.0.0.1:{metrics_port}/readyz", process)
        yield f"127.0.0.1:{grpc_port}", psutil.Process(process.pid), time.monotonic() - began


def wait_ready(url: str, process: subprocess.Popen[Any]) -> None:
    """Until the server says that it is ready; RuntimeError if it ends."""
    while process.poll() is None:
        with suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
            if answer.status == 200:
                return
        time.sleep(0.02)
    raise RuntimeError("the server ended")


@contextmanager
def bare_server(folder: Path, count: int) -> Iterator[str]:
    """A process that holds the same messages ready and sends them."""
    command = [sys.executable, str(HERE / "arbiter.py"), "--bare", str(folder), "--backlog", str(count)]
    with started(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield f"127.0.0.1:{int(process.stdout.readline())}"


async def serve_bare(folder: Path, count: int) -> None:
    """What `bare_server` runs."""
    files = LedgerFolder(folder, rotate_bytes=ROTATE_BYTES, clock=time.time)
    files.refresh()
    examples = (files.shelf.read(s) for s in range(1, count + 1))
    messages = [pb.StreamPlatinumResponse(example=example_message(e)) for e in examples if e is not None]

    class Bare(rpc.ArbiterServiceServicer):
        async def StreamPlatinum(self, request: Any, context: Any) -> Any:
            for message in messages:
                yield message

    bare = grpc.aio.server()
    rpc.add_ArbiterServiceServicer_to_server(Bare(), bare)  # type: ignore[abstract]
    port = bare.add_insecure_port("127.0.0.1:0")
    await bare.start()
    print(port, flush=True)
    await bare.wait_for_termination()


async def consume(address: str, count: int, *, group: str, acknowledge: bool) -> float:
    """Takes that many examples in order; messages a second, from the first to the last."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = rpc.ArbiterServiceStub(channel)
        request = pb.StreamPlatinumRequest(group=group, consumer="one", max_in_flight=IN_FLIGHT)
        acks: set[asyncio.Task[Any]] = set()
        held: list[int] = []
        expected, began = 1, 0.0
        async for message in stub.StreamPlatinum(request):
            if not message.HasField("example"):
                continue
            if message.example.sequence != expected:
                raise RuntimeError(f"{message.example.sequence} came where {expected} was expected")
            began, expected = began or time.perf_counter(), expected + 1
            held.append(message.example.sequence)
            if acknowledge and len(held) == ACK_EVERY:
                call = stub.AckPlatinum(pb.AckPlatinumRequest(group=group, sequences=held))
                task = asyncio.ensure_future(_done(call))
                acks.add(task)
                task.add_done_callback(acks.discard)
                held = []
            if expected > count:
                break
        seconds = time.perf_counter() - began
        await asyncio.gather(*acks)
    return count / seconds


async def _done(call: Any) -> None:
    await call


class Memory:
    """The largest resident memory of a process while the block runs, in MiB, beside that at its start."""

    def __init__(self, process: psutil.Process) -> None:
        self._process, self._over = process, threading.Event()
        self.before = self.largest = 0.0

    def __enter__(self) -> "Memory":
        self.before = self.largest = self._now()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.05):
            self.largest = max(self.largest, self._now())

    def _now(self) -> float:
        return float(self._process.memory_info().rss) / 2**20


def measure_start_and_stream(
    figures: Figures, folder: Path, redis_url: str, runner: asyncio.Runner, *, backlog: int, repetition: int
) -> None:
    """One repetition: the server's start and memory, its stream, and the bare stream beside it."""
    with server(folder, redis_url) as (address, process, seconds):
        cpu = process.cpu_times()
        note(figures, start_s=seconds, start_cpu_s=cpu.user + cpu.system, start_mib=process.memory_info().rss / 2**20)
        group = f"bench-{repetition}"
        runner.run(consume(address, 1000, group=f"warm-{repetition}", acknowledge=True))
        with Memory(process) as memory:
            rate = runner.run(consume(address, backlog, group=group, acknowledge=True))
        note(figures, stream_per_s=rate, stream_grown_mib=memory.largest - memory.before)
    with bare_server(folder, backlog) as address:
        runner.run(consume(address, 1000, group="g", acknowledge=False))
        note(figures, bare_per_s=runner.run(consume(address, backlog, group="g", acknowledge=False)))


class Nothing:
    """Counts no queue."""

    async def counts(self) -> tuple[int, int]:
        """See ports.QueueCounter."""
        return 0, 0


async def measure_delay(figures: Figures, folder: Path, redis_url: str, *, group: str, count: int) -> None:
    """From the end of an append to the arrival of the example, on a server in this process."""
    registry = CollectorRegistry()
    client = redis_client(redis_url, timeout_s=2.0)
    settings = ArbiterSettings(datasets=folder)
    platinum = build_platinum(settings, client, registry)
    refining = build_refining(settings, Catalogue({}), client, registry, platinum.ledger)
    await platinum.ledger.refresh()
    interceptor = MeshInterceptor(CallPolicy(None, 60.0, 512), RpcMetrics(registry))
    running = grpc.aio.server(interceptors=[interceptor])
    service = ArbiterService(
        platinum.ledger, platinum.streams, Nothing(), refining.refinery, refining.nominations, deadline_s=60.0
    )
    rpc.add_ArbiterServiceServicer_to_server(service, running)
    port = running.add_insecure_port("127.0.0.1:0")
    await running.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = rpc.ArbiterServiceStub(channel)
        request = pb.StreamPlatinumRequest(group=group, consumer="one", max_in_flight=10_000)
        stream = stub.StreamPlatinum(request)
        took = []
        for number in range(count):
            stored = await platinum.ledger.append(example(number))
            began = time.perf_counter()
            while True:
                message = await stream.read()
                if message.example.sequence == stored.sequence:
                    break
            took.append(time.perf_counter() - began)
            await stub.AckPlatinum(pb.AckPlatinumRequest(group=group, sequences=[stored.sequence]))
        stream.cancel()
    await running.stop(None)
    await refining.close()
    await platinum.ledger.close()
    await client.aclose()
    note(figures, delay_p50_ms=percentile(took, 0.5) * 1e3, delay_p99_ms=percentile(took, 0.99) * 1e3)


ROWS = {
    "sync_each_per_s": "one sync a record: records a second",
    "sync_each_p50_ms": "- p50 of write and sync, ms",
    "sync_each_p99_ms": "- p99, ms",
    "append_per_s": f"ledger, {WRITERS} writers: appends a second",
    "append_p50_ms": "- p50 of an append, ms",
    "append_p99_ms": "- p99, ms",
    "slow_sync_each_per_s": f"one sync of {FOUND_SYNC_S * 1e3:g} ms a record: records a second",
    "slow_sync_each_p50_ms": "- p50 of write and sync, ms",
    "slow_sync_each_p99_ms": "- p99, ms",
    "slow_append_per_s": f"ledger with such syncs, {WRITERS} writers: appends a second",
    "slow_append_p50_ms": "- p50 of an append, ms",
    "slow_append_p99_ms": "- p99, ms",
    "start_s": "server on the large ledger: start until ready, s",
    "start_cpu_s": "- of that CPU time, s",
    "start_mib": "- resident memory then, MiB",
    "bare_per_s": "bare grpc.aio stream: messages a second",
    "stream_per_s": "platinum stream with acknowledgements: messages a second",
    "stream_grown_mib": "- memory of the server above that before, at most, MiB",
    "delay_p50_ms": "from commit to arrival, p50, ms",
    "delay_p99_ms": "- p99, ms",
}


def ratios_of(m: dict[str, float]) -> dict[str, tuple[float, str]]:
    """The figures that the targets speak of."""
    return {
        "appends a second to one sync a record": (m["append_per_s"] / m["sync_each_per_s"], "at least 10"),
        "p99 of an append to p99 of one sync": (m["append_p99_ms"] / m["sync_each_p99_ms"], "under 4"),
        f"appends, with syncs of {FOUND_SYNC_S * 1e3:g} ms": (
            m["slow_append_per_s"] / m["slow_sync_each_per_s"],
            "at least 10",
        ),
        f"p99, with syncs of {FOUND_SYNC_S * 1e3:g} ms": (
            m["slow_append_p99_ms"] / m["slow_sync_each_p99_ms"],
            "under 4",
        ),
        "start with the large ledger, s": (m["start_s"], "under 5"),
        "memory then, MiB": (m["start_mib"], "under 200"),
        "stream to the bare stream": (m["stream_per_s"] / m["bare_per_s"], "at least 0.5"),
        "memory above that before the backlog, MiB": (m["stream_grown_mib"], "within 50"),
    }


def report(figures: Figures, options: argparse.Namespace) -> None:
    """Prints the table in Markdown and writes bench/results/arbiter.json."""
    medians = {name: statistics.median(values) for name, values in figures.items()}
    ratios = ratios_of(medians)
    print(f"| ledger of {options.lines:,} lines, backlog of {options.backlog:,} | median |")
    print("| --- | ---: |")
    for key, title in ROWS.items():
        print(f"| {title} | {medians[key]:,.2f} |")
    print()
    for name, (value, target) in ratios.items():
        print(f"- {name}: {value:.2f} (target: {target})")
    machine = {
        "cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "python": platform.python_version(),
    }  # fmt: skip
    document = {
        "machine": machine,
        "versions": {n: importlib.metadata.version(n) for n in ("hivemind", "grpcio", "protobuf", "orjson", "redis")},
        "lines": options.lines, "backlog": options.backlog, "repetitions": figures, "median": medians,
        "ratios": {k: v for k, (v, _) in ratios.items()},
    }  # fmt: skip
    (RESULTS / "arbiter.json").write_text(json.dumps(document, indent=1) + "\n")


def main(arguments: list[str]) -> None:
    """Measures, prints a table in Markdown and writes bench/results/arbiter.json."""
    parser = argparse.ArgumentParser(
        prog="arbiter", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small counts: a smoke test")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--lines", type=int, default=0, help="lines of the large ledger")
    parser.add_argument("--backlog", type=int, default=0)
    parser.add_argument("--bare", default="", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.bare:
        asyncio.run(serve_bare(Path(options.bare), options.backlog))
        return
    options.lines = options.lines or (50_000 if options.quick else 1_000_000)
    options.backlog = options.backlog or (10_000 if options.quick else 100_000)
    RESULTS.mkdir(exist_ok=True)
    configure_logs("bench", "ERROR")
    figures: Figures = {}
    for repetition in range(options.repeat):
        few, many = (500, 3000) if options.quick else (3000, 30_000)
        measure_appends(figures, RealDisk(), "", each=few, grouped=many)
        measure_appends(figures, SlowDisk(), "slow_", each=few // 2, grouped=many // 2)
        print(f"appends {repetition + 1} of {options.repeat} done", file=sys.stderr)
    with (
        asyncio.Runner() as runner,  # one loop for all: gRPC may end a call of one block in the next
        tempfile.TemporaryDirectory(dir=RESULTS) as folder,
        redis(Path(folder) / "redis") as redis_url,
    ):
        large = Path(folder) / "large"
        make_ledger(large, options.lines)
        for repetition in range(options.repeat):
            measure_start_and_stream(figures, large, redis_url, runner, backlog=options.backlog, repetition=repetition)
            small = Path(folder) / f"small-{repetition}"
            group, count = f"delay-{repetition}", 50 if options.quick else 500
            runner.run(measure_delay(figures, small, redis_url, group=group, count=count))
            print(f"stream {repetition + 1} of {options.repeat} done", file=sys.stderr)
    report(figures, options)


if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parent))
    main(sys.argv[1:])
