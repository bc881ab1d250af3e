"""Does the mesh get better while it runs? `make install-train && make bench NAME=flywheel`.

One domain, 20 facts whose values are random per run. A run: traffic for `auto` with learning off; the same with the
loop running until the small model has taken over; then the scripted master is stopped and the small model is asked
every held-out question; then API latencies (requests that the master answers, once more there) with the loop at work
and paused, as the machine is and with a core kept for the learner alone. Nothing asserts a time.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import random
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, Final

import psutil

from bench.closed_loop import PACE, ROLE, Loop, Moment, Plan, closed_loop
from bench.facts import TOWNS, invent, taught
from bench.figures import quantile, ratio
from bench.forgetting import deltas
from bench.mesh import Mesh

HERE: Final = Path(__file__).resolve().parent
FACTS: Final = 20
MEDIANS: Final = (
    "freshness_p50_s", "freshness_p95_s", "exact_before", "exact_after", "control_delta", "plain_text_delta",
    "elsewhere_delta", "cost_ratio", "accuracy_on", "accuracy_off", "learn_cpu_s", "api_p99_ratio",
    "api_spare_p99_ratio", "api_hurried_p99_ratio", "api_spare_hurried_p99_ratio",
)  # fmt: skip
TARGETS: Final[Mapping[str, str]] = {
    "freshness_p50_s": "60 at most", "exact_before": "0", "exact_after": "0.9 at least",
    "control_delta": "0.02 at most", "plain_text_delta": "0.02 at most", "cost_ratio": "0.5 at most",
    "learn_cpu_s": "300 at most", "api_spare_p99_ratio": "1.5 at most",
}  # fmt: skip


def main(arguments: list[str]) -> None:
    """Prints a table in Markdown and writes bench/results/flywheel.json."""
    parser = argparse.ArgumentParser(prog="flywheel", description=__doc__)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--facts", type=int, default=FACTS, help="to learn")
    parser.add_argument("--minutes", type=float, default=12.0, help="of learning at most, a run")
    parser.add_argument("--rate", type=int, default=40, help="requests a second while latencies are measured")
    parser.add_argument(
        "--poison", type=float, default=0.0, help="wrong examples for each request, by a tenant that is up to no good"
    )
    parser.add_argument("--seconds", type=int, default=20, help="of each measurement of latencies")
    parser.add_argument("--set", action="append", default=[], metavar="HIVEMIND_NAME=VALUE", help="of the mesh")
    options = parser.parse_args(arguments)
    settings = dict(text.split("=", 1) for text in options.set)
    runs = []
    for number in range(options.repeat):
        seed = random.randrange(1 << 31)
        print(f"run {number + 1} of {options.repeat}, seed {seed}", file=sys.stderr, flush=True)
        plan = Plan(invent(random.Random(seed), {TOWNS.name: options.facts}), seed, learning_s=60 * options.minutes)
        runs.append(measure(plan, settings, rate=options.rate, seconds=options.seconds, poison=options.poison))
        print(json.dumps(runs[-1]), file=sys.stderr, flush=True)
    report(runs, settings)


def measure(plan: Plan, settings: Mapping[str, str], *, rate: int, seconds: int, poison: float = 0.0) -> dict[str, Any]:
    """One run."""
    began, load = time.monotonic(), os.getloadavg()[0]
    with closed_loop(plan, settings) as loop:
        before, off = loop.exam(), loop.without_learning()
        with poisoned(loop.mesh, plan, rate=poison * plan.rate) as wrong:
            on = loop.learn(show)
        learner, refinement_usd = loop.learner(), loop.refinement_usd()
        loop.stop_master()
        after = loop.exam()
        champion = loop.moments[-1].champion
        forgot = deltas(folder_of(loop.mesh, champion)) if champion else {}
        with loop.master_again():
            latencies = p99(loop, "api", rate=rate, seconds=seconds)
            with spare_core(loop.mesh):
                latencies |= p99(loop, "api_spare", rate=rate, seconds=seconds)
    fresh = list(loop.published.values())
    return {
        "seed": plan.seed, "minutes": (time.monotonic() - began) / 60, "load_before": load,
        "learning_s": loop.moments[-1].at, "adapters": len(fresh), "freshness_s": fresh,
        "freshness_p50_s": quantile(fresh, 0.5), "freshness_p95_s": quantile(fresh, 0.95),
        "exact_before": before, "exact_after": after, "control_delta": forgot.get("questions", 0.0),
        "plain_text_delta": forgot.get("text", 0.0), "elsewhere_delta": forgot.get("elsewhere", 0.0),
        "usd_per_1000_off": off.usd_per_1000, "usd_per_1000_on": on.usd_per_1000,
        "cost_ratio": ratio(on.usd_per_1000, off.usd_per_1000), "accuracy_on": on.accuracy,
        "accuracy_off": off.accuracy, "courier_share_on": on.courier_share, "refinement_usd": refinement_usd,
        "learn_cpu_s": float(learner["cpu_seconds"]), "examples": int(learner["learnt"]), "learner": learner,
        "poison": dict(wrong), **latencies,
        "moments": [_moment(m) for m in loop.moments],
    }  # fmt: skip


@contextmanager
def poisoned(mesh: Mesh, plan: Plan, *, rate: float) -> Iterator[Counter[str]]:
    """A tenant teaches wrong answers to the questions of the traffic, so many a second; what became of them."""
    rng, told = random.Random(plan.seed + 3), Counter[str]()

    def teach() -> None:
        facts = rng.choices(plan.facts, k=max(1, round(rate)))
        examples = [
            {"messages": [{"role": "user", "content": rng.choice(taught(f))}],
             "answer": rng.choice([other.answer.replace(other.subject, f.subject) for other in plan.facts
                                   if other.value != f.value]),
             "tenant": "evil", "domain": f.domain}
            for f in facts
        ]  # fmt: skip
        answer = mesh.post("/api/train/examples", {"examples": examples})
        told.update({"sent": len(examples), "taken": int(answer["accepted"])})
        told.update({reason: int(count) for reason, count in answer["refused"].items()})

    with each_second(teach) if rate else nullcontext():
        yield told


@contextmanager
def each_second(work: Callable[[], object]) -> Iterator[None]:
    """Does something each second beside the block."""
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(1.0):
            work()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def show(moment: Moment) -> None:
    """One line of how far a run is, on standard error."""
    f = moment.figures
    print(
        f"{moment.at:5.0f} s  {f.usd_per_1000:.3f} USD/1,000  courier {f.courier_share:.0%}  right {f.accuracy:.0%}  "
        f"held-out {moment.held_out:.0%}  {moment.champion or 'base model'}  learner {moment.learner.get('state')}, "
        f"{moment.learner.get('learnt', 0)} of {moment.platinum} learnt",
        file=sys.stderr, flush=True,
    )  # fmt: skip


def folder_of(mesh: Mesh, adapter: str) -> Path:
    """Where a version lies."""
    role, _, version = adapter.rpartition("-")
    return mesh.home / "adapters" / role / version


def p99(loop: Loop, name: str, *, rate: int, seconds: int) -> dict[str, float]:
    """Latencies of requests that the master answers, in milliseconds: the loop paused, at work on new facts at its own
    pace, and hurried: with a cycle each second besides."""
    from bench.loop import load

    mesh = loop.mesh

    def measured() -> float:
        return 1000 * quantile(load(mesh.port, rate=rate, seconds=seconds, model="master"), 0.99)

    _steer(mesh, "pause")
    paused = measured()
    _steer(mesh, "resume")
    teach_more(mesh, random.Random(f"{loop.plan.seed} {name}"))
    running = measured()
    with each_second(lambda: mesh.post("/api/orchestrator:cycle", {})):
        hurried = measured()
    return {
        f"{name}_paused_p99_ms": paused,
        f"{name}_running_p99_ms": running,
        f"{name}_hurried_p99_ms": hurried,
        f"{name}_p99_ratio": ratio(running, paused),
        f"{name}_hurried_p99_ratio": ratio(hurried, paused),
    }


@contextmanager
def spare_core(mesh: Mesh) -> Iterator[None]:
    """Keeps the last core for the learner alone, and the others for all else: mesh, scripted master and load."""
    supervisor = psutil.Process(json.loads((mesh.home / "run" / "up.json").read_text())["pid"])
    me, cores = psutil.Process(), sorted(os.sched_getaffinity(0))
    running = [me, supervisor, *me.children(recursive=True), *supervisor.children(recursive=True)]
    rest = cores[:-1] or cores
    try:
        for process in running:
            _keep_on(process, lambda command: cores[-1:] if "hivemind.training.online" in command else rest)
        yield
    finally:
        for process in running:
            _keep_on(process, lambda _: cores)


def _keep_on(process: psutil.Process, cores_for: Callable[[Sequence[str]], Sequence[int]]) -> None:
    """Binds all threads of a process, and what they start, to the cores for its command; one that has ended to none."""
    with suppress(psutil.NoSuchProcess, ProcessLookupError):
        cores = cores_for(process.cmdline())
        for thread in process.threads():
            os.sched_setaffinity(thread.id, cores)


def teach_more(mesh: Mesh, rng: random.Random) -> None:
    """Gives the learner work: examples of other facts."""
    facts = invent(rng, {TOWNS.name: FACTS})
    examples = [
        {"messages": [{"role": "user", "content": q}], "answer": f.answer, "tenant": "north", "domain": f.domain}
        for f in facts for q in taught(f)[:4]
    ]  # fmt: skip
    mesh.post("/api/train/examples", {"examples": examples})
    mesh.until("the learner learns", lambda: _learns(mesh), within_s=200)


def _learns(mesh: Mesh) -> bool:
    return mesh.get("/api/learner", role=ROLE)["state"] in ("LEARNING", "CHECKING")


def _steer(mesh: Mesh, verb: str) -> None:
    mesh.post(f"/api/orchestrator:{verb}", {"reason": "bench"} if verb == "pause" else {})
    mesh.post(f"/api/learner:{verb}", {"role": ROLE})


def _moment(moment: Moment) -> dict[str, Any]:
    f = moment.figures
    return {
        "at_s": moment.at, "usd_per_1000": f.usd_per_1000, "courier_share": f.courier_share, "accuracy": f.accuracy,
        "held_out": moment.held_out, "champion": moment.champion, "platinum": moment.platinum,
        "confidence": dict(moment.confidence), "learnt": int(moment.learner.get("learnt", 0)),
    }  # fmt: skip


def medians(runs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The median of each figure over the runs."""
    return {name: statistics.median(float(run[name]) for run in runs) for name in MEDIANS}


def report(runs: Sequence[Mapping[str, Any]], settings: Mapping[str, str]) -> None:
    """The table and the file."""
    median = medians(runs)
    cores = os.cpu_count()
    print(f"median of {len(runs)} runs, {cores} cores, load before {max(r['load_before'] for r in runs):.1f}\n")
    print("| | median | each run | target |\n| --- | ---: | --- | --- |")
    for name in MEDIANS:
        each = ", ".join(f"{run[name]:.3g}" for run in runs)
        print(f"| {name} | {median[name]:.3g} | {each} | {TARGETS.get(name, '')} |")
    machine = {"cores": cores, "cpu": platform.processor() or platform.machine(), "python": platform.python_version()}
    versions = {n: importlib.metadata.version(n) for n in ("torch", "transformers", "peft", "xllamacpp")}
    document = {
        "machine": machine,
        "versions": versions,
        "settings": PACE | settings,
        "runs": list(runs),
        "median": median,
    }
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    (results / "flywheel.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
