"""The targets of bench/routing: what is wanted of the quality gate, beside what was measured."""

import csv
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hivemind.servers.router.gate.model import GENERIC, MODEL_FILE, TABLE_FILE, Gate
from hivemind.training.router_gate import apgr, head_errors, interval, score

DECIDED = 500
SCORED = 10_000
SCORED_CHARACTERS = 600
LEAST_GAP = 0.05
"""Where the strong model is better by less, recovering the gap has no meaning."""
APGR_ON_DEV = {"mmlu": 0.78, "open9": 0.80}
APGR_LEFT_OUT = {"mmlu": 0.60, "open9": 0.65}


@dataclass(frozen=True, slots=True)
class Target:
    """One row of the table of targets: what is wanted, what was measured, and whether that reaches it."""

    what: str
    wanted: str
    measured: str
    reached: bool


def by_part(scores: Any, y: Any, parts: Sequence[str]) -> dict[str, tuple[float, float, float]]:
    """APGR and its interval within each part in which the strong model is better by LEAST_GAP."""
    found: dict[str, tuple[float, float, float]] = {}
    for part in sorted(set(parts)):
        rows = np.flatnonzero(np.array(parts) == part)
        if float(np.mean(y[rows, 1] - y[rows, 0])) >= LEAST_GAP:
            found[part] = (apgr(scores[rows], y[rows]), *interval(scores[rows], y[rows]))
    return found


def chance_error(found: Any, draws: int = 200) -> tuple[float, float]:
    """The calibration errors that outcomes drawn from the estimates themselves would show: chance alone."""
    rng = np.random.default_rng(0)
    p = np.array([[e.weak, e.strong] for e in found])
    errors = np.array([head_errors(found, (rng.random(p.shape) < p).astype(float)) for _ in range(draws)])
    return float(errors[:, 0].mean()), float(errors[:, 1].mean())


def decision_ms(prompts: Sequence[str]) -> float:
    """Median CPU time of an estimate that is not cached, in milliseconds, in this process."""
    gate, spent = Gate(), []
    for prompt in dict.fromkeys(prompts):
        start = time.thread_time()
        gate.estimate(prompt)
        spent.append(time.thread_time() - start)
    return 1000 * float(np.median(spent))


def scoring_seconds(prompts: Sequence[str]) -> float:
    """Wall time of `router_gate score` on SCORED different prompts of SCORED_CHARACTERS."""
    text = " ".join(prompts)
    step = max(1, (len(text) - SCORED_CHARACTERS) // SCORED)
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.csv", Path(folder) / "out.csv"
        with source.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["row_id", "prompt"])
            writer.writerows([i, text[i * step : i * step + SCORED_CHARACTERS]] for i in range(SCORED))
        start = time.perf_counter()
        score(source, target, GENERIC)
        return time.perf_counter() - start


def quality_targets(
    pair: str, told: dict[str, Any], errors: tuple[float, float], left_out: float, ends: tuple[float, float]
) -> Iterable[Target]:
    """The targets on dev, and on the APGR of kinds left out with the ends of its interval."""
    low, high = told["apgr_ci95"]
    wanted = APGR_ON_DEV[pair]
    yield Target("APGR on dev", f">= {wanted}", f"{told['apgr']:.3f} [{low:.3f}, {high:.3f}]", told["apgr"] >= wanted)
    wanted, (low, high) = APGR_LEFT_OUT[pair], ends
    yield Target(
        "APGR on kinds left out", f">= {wanted}, low end > 0.55", f"{left_out:.3f} [{low:.3f}, {high:.3f}]",
        left_out >= wanted and low > 0.55,
    )  # fmt: skip
    for head, error in zip(("weak", "strong"), errors, strict=True):
        yield Target(f"calibration error on dev, {head}", "< 0.05", f"{error:.3f}", error < 0.05)
    if pair == "mmlu":
        cost = told["q95_cost"]
        yield Target("cost at 95% of the strong model's quality", "< 35%", f"{cost:.1f}%", cost < 35)


def harm_target(where: str, parts: dict[str, tuple[float, float, float]]) -> Target:
    """The worst part, against 0.50."""
    worst = min(parts, key=lambda name: parts[name][0])
    shown = "{}: {:.3f} [{:.3f}, {:.3f}]".format(worst, *parts[worst])
    return Target(f"worst APGR by {where}", ">= 0.50", shown, parts[worst][0] >= 0.50)


def cost_targets(prompts: Sequence[str]) -> Iterable[Target]:
    """What a decision and a file of prompts take, and how large the artefacts are."""
    spent, seconds = decision_ms(prompts[:DECIDED]), scoring_seconds(prompts)
    size = (TABLE_FILE.stat().st_size + MODEL_FILE.stat().st_size) / 1e6
    yield Target("a decision, CPU p50", "< 3 ms", f"{spent:.2f} ms", spent < 3)
    yield Target("score, 10,000 prompts of 600 characters", "< 900 s", f"{seconds:.0f} s", seconds < 900)
    yield Target("artefacts", "< 8 MB", f"{size:.1f} MB", size < 8)


def show(targets: Sequence[Target]) -> None:
    """The table in Markdown."""
    print("\n| target | wanted | measured | reached |\n| --- | --- | --- | --- |")
    for t in targets:
        print(f"| {t.what} | {t.wanted} | {t.measured} | {'yes' if t.reached else 'NO'} |")
