"""What each strategy costs: calls, tokens, depth and wall time: `make bench NAME=strategies`.

A mesh with its embedded courier answers the same few questions by every strategy, one after the other. Depth is the
longest chain of calls that had to wait for each other, counted from the records' start times and latencies.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from datetime import datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
STRATEGIES = ("single", "cascade", "vote", "committee", "debate", "clone_dispatch")
QUESTIONS = (
    "What is 17 + 25? Answer with the number.",
    "Name the capital of France and the capital of Japan.",
    "Which is heavier, a kilogram of iron or a kilogram of feathers?",
)


def post(base: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """A POST that answers JSON; HTTPError with a status above 399."""
    request = urllib.request.Request(base + path, json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=120) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def add_master(config: Path, base: str, engine_port: int) -> None:
    """Serves the local model as master too, so that cascade and a mixed committee have two models; waits for it."""
    url = f"http://127.0.0.1:{engine_port}/v1"
    config.write_text(
        f'[models.master]\nendpoints = [{{ base_url = "{url}", model = "courier" }}]\ncontext_tokens = 2048\n'
        "input_price = 1.0\noutput_price = 2.0\n"
    )
    end = time.monotonic() + 20
    while time.monotonic() < end:
        with urllib.request.urlopen(f"{base}/api/models", timeout=5) as answer:
            if any(m["id"] == "master" and m["health"] != "NOT_CONFIGURED" for m in json.load(answer)["models"]):
                return
        time.sleep(0.2)
    raise TimeoutError("the Router did not take the new catalogue")


def depth(calls: list[dict[str, Any]]) -> int:
    """How many calls of a record had to come one after the other."""
    spans = sorted(
        (datetime.fromisoformat(c["start_time"]).timestamp(), float(c["latency"].rstrip("s"))) for c in calls
    )
    longest: list[int] = []
    for i, (start, _) in enumerate(spans):
        longest.append(1 + max((longest[j] for j in range(i) if sum(spans[j]) <= start + 0.002), default=0))
    return max(longest, default=0)


def main(arguments: list[str]) -> None:
    """Prints a table in Markdown and writes bench/results/strategies.json."""
    parser = argparse.ArgumentParser(prog="strategies", description=__doc__)
    parser.add_argument("--repeat", type=int, default=2)
    options = parser.parse_args(arguments)
    measured: dict[str, list[dict[str, float]]] = {s: [] for s in STRATEGIES}
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "HIVEMIND_HOME": folder, "HIVEMIND_PORT": "0"}
        environment["HIVEMIND_CONFIG"] = f"{folder}/hivemind.toml"
        config = Path(environment["HIVEMIND_CONFIG"])
        config.write_text("")
        command = [sys.executable, "-m", "hivemind.cli"]
        subprocess.run([*command, "up", "--detach"], env=environment, check=True, stdout=subprocess.DEVNULL)
        try:
            plan = json.loads((Path(folder) / "run" / "mesh.json").read_text())
            base = f"http://127.0.0.1:{plan['port']}"
            add_master(config, base, plan["processes"]["engine"]["http"])
            for _ in range(options.repeat):
                for strategy in STRATEGIES:
                    for question in QUESTIONS:
                        _measure(base, strategy, question, measured[strategy])
        finally:
            subprocess.run([*command, "down"], env=environment, check=False, stdout=subprocess.DEVNULL)
    print("| strategy | calls | prompt tokens | answer tokens | depth | wall time, s |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    medians = {}
    for strategy, found in measured.items():
        if not found:
            print(f"| {strategy} | needs a second model | | | | |")
            continue
        medians[strategy] = {k: statistics.median(f[k] for f in found) for k in found[0]}
        m = medians[strategy]
        cells = [f"{m[k]:g}" for k in ("calls", "prompt", "completion", "depth")] + [f"{m['wall_s']:.2f}"]
        print(f"| {strategy} | " + " | ".join(cells) + " |")
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    machine = {"cores": os.cpu_count(), "python": platform.python_version()}
    document = {"machine": machine, "repetitions": measured, "median": medians}
    (results / "strategies.json").write_text(json.dumps(document, indent=1) + "\n")


def _measure(base: str, strategy: str, question: str, into: list[dict[str, float]]) -> None:
    body = {"messages": [{"role": "user", "content": question}], "hints": {"strategy": strategy}, "max_tokens": 64}
    began = time.monotonic()
    try:
        answer = post(base, "/api/complete", body)
    except urllib.error.HTTPError as error:
        if error.code != 400:
            raise
        return
    wall_s = time.monotonic() - began
    with urllib.request.urlopen(f"{base}/api/requests/{answer['request_id']}", timeout=10) as found:
        record = json.load(found)
    into.append(
        {
            "calls": len(record["calls"]), "prompt": record["usage"]["prompt_tokens"],
            "completion": record["usage"]["completion_tokens"], "depth": depth(record["calls"]), "wall_s": wall_s,
        }
    )  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
