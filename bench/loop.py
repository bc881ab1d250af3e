"""Does the loop slow requests down? `make bench NAME=loop`.

A mesh answers a steady load of plain completions from a mock model server, again and again with the loop paused and
with the loop at work: a second after each cycle the next, and every few seconds an example is forgotten, so that the
whole ledger is read again. That is far more than it does by itself, a cycle a minute.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from hivemind.servers.arbiter.example import NewExample, Provenance
from hivemind.servers.arbiter.folder import LedgerFolder
from hivemind.servers.common.turn import Turn

HERE = Path(__file__).resolve().parent
BATCH = 200
PACE_S, FORGET_EVERY_S = 1.0, 5.0
EXAMPLE = NewExample(
    messages=(Turn("user", "What is the boiling point of water on a high mountain, and why is it another one there?"),),
    draft="It boils at ninety degrees. " * 10,
    final_platinum_answer="It boils at a lower temperature, as the pressure is lower. " * 10,
    refined_by="ORACLE", provenance=Provenance("courier", score=0.9, draft_score=0.4), tenant="t1", domain="science",
    confidence=0.9, licence="operator", consent="t1", origin="traffic",
)  # fmt: skip


def fill(folder: Path, lines: int) -> None:
    """Writes a ledger as the Arbiter would."""
    files = LedgerFolder(folder, rotate_bytes=256 << 20, clock=time.time)
    files.refresh()
    for begin in range(0, lines, BATCH):
        files.commit([replace(EXAMPLE, request_id=f"bench-{i}") for i in range(begin, min(lines, begin + BATCH))])


def post(base: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """A POST that answers JSON."""
    request = urllib.request.Request(base + path, json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=120) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


@contextmanager
def mesh(folder: Path) -> Iterator[dict[str, Any]]:
    """A running mesh whose courier is the mock; its plan."""
    with subprocess.Popen([sys.executable, str(HERE / "mock_upstream.py")], stdout=subprocess.PIPE, text=True) as mock:
        assert mock.stdout is not None
        url = f"http://127.0.0.1:{int(mock.stdout.readline())}/v1"
        config = folder / "hivemind.toml"
        config.write_text(f'[models.courier]\nendpoints = [{{ base_url = "{url}", model = "mock" }}]\n')
        environment = {
            **os.environ, "HIVEMIND_HOME": str(folder), "HIVEMIND_PORT": "0", "HIVEMIND_CONFIG": str(config),
        }  # fmt: skip
        command = [sys.executable, "-m", "hivemind.cli"]
        subprocess.run([*command, "up", "--detach"], env=environment, check=True, stdout=subprocess.DEVNULL)
        try:
            yield json.loads((folder / "run" / "mesh.json").read_text())
        finally:
            subprocess.run([*command, "down"], env=environment, check=False, stdout=subprocess.DEVNULL)
            mock.terminate()


@contextmanager
def busy_loop(base: str, numbers: Iterator[int]) -> Iterator[list[int]]:
    """Keeps the loop at work; the cycles that it ran."""
    ended, cycles = threading.Event(), [0]

    def work() -> None:
        forgotten = 0.0
        while not ended.is_set():
            if time.monotonic() - forgotten > FORGET_EVERY_S:
                forgotten = time.monotonic()
                post(base, "/api/platinum:forget", {"request_id": f"bench-{next(numbers)}"})
            post(base, "/api/orchestrator:cycle", {})
            cycles[0] += 1
            ended.wait(PACE_S)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield cycles
    finally:
        ended.set()
        thread.join()


def load(port: int, *, rate: int, seconds: int, model: str = "courier") -> list[float]:
    """The latencies of a steady load, in seconds."""
    command = [
        sys.executable,
        str(HERE / "load.py"),
        str(port),
        model,
        "plain",
        "8",
        str(rate * seconds),
        str(rate),
    ]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    if found["bad"]:
        sys.exit(f"{found['bad']} answers were not whole")
    return sorted(found["latencies"])


def main(arguments: list[str]) -> None:
    """Prints a table in Markdown and writes bench/results/loop.json."""
    parser = argparse.ArgumentParser(prog="loop", description=__doc__)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=15)
    parser.add_argument("--rate", type=int, default=50)
    parser.add_argument("--lines", type=int, default=50_000)
    options = parser.parse_args(arguments)
    runs: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fill(folder / "datasets", options.lines)
        with mesh(folder) as plan:
            base, numbers = f"http://127.0.0.1:{plan['port']}", iter(range(options.lines))
            wait_for_leader(base)
            runs += [
                measure(base, plan["port"], numbers, rate=options.rate, seconds=options.seconds)
                for _ in range(options.repeat)
            ]
    report(runs, vars(options))


def measure(base: str, port: int, numbers: Iterator[int], *, rate: int, seconds: int) -> dict[str, float]:
    """One repetition: paused, then at work."""
    post(base, "/api/orchestrator:pause", {"reason": "bench"})
    paused = load(port, rate=rate, seconds=seconds)
    post(base, "/api/orchestrator:resume", {})
    with busy_loop(base, numbers) as cycles:
        running = load(port, rate=rate, seconds=seconds)
    found = {f"{name}_p{p}_ms": _percentile(values, p) for name, values in (("paused", paused), ("running", running))
             for p in (50, 99)}  # fmt: skip
    return {**found, "p99_ratio": found["running_p99_ms"] / found["paused_p99_ms"], "cycles": float(cycles[0])}


def wait_for_leader(base: str) -> None:
    """Somebody leads within a few seconds of the start."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        with urllib.request.urlopen(f"{base}/api/orchestrator", timeout=10) as answer:
            if json.load(answer)["leader"]:
                return
        time.sleep(0.1)
    sys.exit("nobody leads the loop")


def report(runs: list[dict[str, float]], options: dict[str, Any]) -> None:
    """The table and the file."""
    medians = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    print(f"{options['rate']} requests a second, a ledger of {options['lines']} lines, {os.cpu_count()} cores\n")
    print("| | p50, ms | p99, ms | cycles |")
    print("| --- | ---: | ---: | ---: |")
    print(f"| loop paused | {medians['paused_p50_ms']:.2f} | {medians['paused_p99_ms']:.2f} | 0 |")
    print(
        f"| loop at work | {medians['running_p50_ms']:.2f} | {medians['running_p99_ms']:.2f} | {medians['cycles']:g} |"
    )
    print(f"\nratio of p99: {medians['p99_ratio']:.2f} (median of {len(runs)})")
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "cpu": platform.processor()}
    document = {"machine": machine, "options": options, "runs": runs, "median": medians}
    (results / "loop.json").write_text(json.dumps(document, indent=1) + "\n")


def _percentile(values: list[float], p: int) -> float:
    return 1000 * values[min(len(values) - 1, len(values) * p // 100)]


if __name__ == "__main__":
    main(sys.argv[1:])
