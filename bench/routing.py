"""How good the quality gate's order is, on recorded outcomes: `make bench NAME=routing DATA=DIR`.

The gate, as it is checked in, against random order, prompt length, an n-gram logistic regression and a vote of the
nearest neighbours (RouteLLM's kind of baseline, trained here on the same train files), and the oracle. Scored by
routing_score.py, which lies beside the data's parent folder. Then: what feedback adds. Whole subjects or tasks are left
out of a fit, 5% of their outcomes are fed back at random as they come, and each later request is scored with what was
known before it. Last: what a decision costs, and each target beside what was measured.
"""

import argparse
import importlib.util
import json
import platform
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from safetensors import safe_open

from bench.routing_targets import (
    Target,
    by_part,
    chance_error,
    cost_targets,
    harm_target,
    quality_targets,
    show,
)
from hivemind.servers.router.gate.features import Features
from hivemind.servers.router.gate.model import MODEL_FILE, TABLE_FILE, Gate
from hivemind.servers.router.gate.wordpiece import PieceTable
from hivemind.servers.router.skills import Opinions
from hivemind.training.router_gate import (
    COSTS,
    FILES,
    HeldOut,
    Recording,
    apgr,
    calibrated,
    calibration,
    head_errors,
    held_out,
    interval,
    linear_columns,
    outcomes,
    random_folds,
    read,
    rows_of,
    whole_kinds,
)  # fmt: skip

HERE = Path(__file__).resolve().parent
NEIGHBOURS = 50
DRAWS = 30
FED_BACK = 0.05


def baselines(train: list[dict[str, str]], dev: list[dict[str, str]], vectors: tuple[Any, Any]) -> dict[str, Any]:
    """Scores of the simple routers on dev."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    y = outcomes(train)
    gain = y[:, 1] - y[:, 0]
    words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    x = words.fit_transform(r["prompt"] for r in train)
    ngram = LogisticRegression(C=1.0, max_iter=300).fit(x, y[:, 0] < 0.5)
    near = np.argsort(-(vectors[1] @ vectors[0].T), axis=1)[:, :NEIGHBOURS]
    return {
        "random": np.random.default_rng(0).random(len(dev)),
        "prompt length": np.array([float(len(r["prompt"])) for r in dev]),
        "n-gram logistic": ngram.predict_proba(words.transform(r["prompt"] for r in dev))[:, 1],
        "embedding kNN": gain[near].mean(axis=1),
    }


def unit(rows: list[dict[str, str]]) -> Any:
    """Static embeddings of length one."""
    table = PieceTable(TABLE_FILE)
    found = np.array([table.embed(table.pieces(r["prompt"])) for r in rows])
    return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-9)


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What fits that never saw a row's kind say of it: `heads` (rows, 2), calibrated as the gate's are."""

    own: Recording
    held: HeldOut
    heads: Any

    @property
    def need(self) -> Any:
        """The order that follows."""
        return self.held.need(self.heads)


def left_out(data: Path, pair: str) -> LeftOut:
    """Fits anew without each kind, as `train` does to choose."""
    features = Features(PieceTable(TABLE_FILE))
    own, other = (read(data, p, "train", features) for p in (pair, next(p for p in FILES if p != pair)))
    share = json.loads(_about())["pairs"][pair]["share"]
    asked, held = (held_out(own, other, f(own), linear_columns(features)) for f in (random_folds, whole_kinds))
    corrections = calibration(asked.mixed(share), own.y)
    return LeftOut(own, held, calibrated(held.mixed(share), corrections))


def with_feedback(part: LeftOut, expected: Any, groups: Sequence[str]) -> tuple[float, float, float]:
    """Low end, mean and high end of the paired gain in APGR of learning from 5% of the outcomes, group by group.

    Opinions are counted against `expected`, (rows, 2), and move the order, as servers/router/skills.py does it.
    """
    y, plain, gains = part.own.y, apgr(part.need, part.own.y), []
    for draw in range(DRAWS):
        rng = np.random.default_rng(draw)
        opinions: dict[str, tuple[Opinions, Opinions]] = {}
        order = part.need.copy()
        for i in rng.permutation(len(order)):
            known = opinions.get(groups[i], (Opinions(), Opinions()))
            weak, strong = (o.correct(p) - p for o, p in zip(known, expected[i], strict=True))
            order[i] += strong - weak
            if rng.random() < FED_BACK:
                after = [o.after(outcome, p) for o, outcome, p in zip(known, y[i], expected[i], strict=True)]
                opinions[groups[i]] = (after[0], after[1])
        gains.append(apgr(order, y) - plain)
    low, high = np.percentile(gains, [2.5, 97.5])
    return float(low), float(np.mean(gains)), float(high)


def _about() -> str:
    with safe_open(MODEL_FILE, framework="np") as opened:
        return str(opened.metadata()["about"])


def main(arguments: list[str]) -> None:
    """Prints the tables in Markdown and writes bench/results/routing.json and routing.png."""
    parser = argparse.ArgumentParser(
        prog="routing", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="the folder of the recordings")
    parser.add_argument("--scorer", type=Path, help="routing_score.py; default: two folders above the data")
    options = parser.parse_args(arguments)
    scorer = _scorer(options.scorer or options.data.resolve().parent.parent / "routing_score.py")
    gate, curves = Gate(), {}
    results: dict[str, dict[str, Any]] = {}
    for pair in FILES:
        results[pair], curves[pair] = measured(gate, pair, options.data, scorer)
    print("\n### What it takes")
    costs = list(cost_targets([r["prompt"] for r in rows_of(options.data, "mmlu", "train")]))
    show(costs)
    results["costs"] = {"targets": list(map(asdict, costs))}
    folder = HERE / "results"
    folder.mkdir(exist_ok=True)
    machine = {"python": platform.python_version(), "numpy": np.__version__}
    (folder / "routing.json").write_text(json.dumps({"machine": machine, "results": results}, indent=1) + "\n")
    _draw(curves, folder / "routing.png")
    print("\nbench/results/routing.json, bench/results/routing.png")


def measured(gate: Gate, pair: str, data: Path, scorer: ModuleType) -> tuple[dict[str, Any], dict[str, Any]]:
    """Prints one pair's tables; its figures, and its curves by router."""
    train, dev = rows_of(data, pair, "train"), rows_of(data, pair, "dev")
    y, found = outcomes(dev), [gate.estimate(r["prompt"], pair) for r in dev]
    orders = baselines(train, dev, (unit(train), unit(dev))) | {
        "hivemind, generic": np.array([gate.estimate(r["prompt"]).need for r in dev]),
        "hivemind": np.array([e.need for e in found]),
        "oracle": y[:, 1] - y[:, 0],
    }
    costs = [np.full(len(y), c) for c in COSTS[pair]]
    print(f"\n### {pair}: {len(y)} questions of dev\n")
    print("| router | APGR | 95% interval | cost at 95% quality | CPT50 |\n| --- | ---: | ---: | ---: | ---: |")
    told = {name: _told(name, order, y, costs, scorer) for name, order in orders.items()}
    curves = {name: scorer.curve(order, y[:, 0], y[:, 1], *costs) for name, order in orders.items()}
    chance = chance_error(found)
    print(f"\nCalibration error that chance alone would show: weak {chance[0]:.3f}, strong {chance[1]:.3f}")
    part = left_out(data, pair)
    ends = interval(part.need, part.own.y)
    targets = [
        *quality_targets(pair, told["hivemind"], head_errors(found, y), apgr(part.need, part.own.y), ends),
        harm_target("category of dev", by_part(orders["hivemind"], y, [r["category"] for r in dev])),
        harm_target("category, kinds left out", by_part(part.need, part.own.y, [r["category"] for r in train])),
        *feedback_targets(part),
    ]
    show(targets)
    return told | {"chance_error": chance, "targets": list(map(asdict, targets))}, curves


def _told(name: str, order: Any, y: Any, costs: list[Any], scorer: ModuleType) -> dict[str, Any]:
    told = scorer.evaluate(order, y[:, 0], y[:, 1], *costs)
    told |= scorer.bootstrap(order, y[:, 0], y[:, 1], *costs, 200)
    low, high = told["apgr_ci95"]
    shown = f"{told['apgr']:.3f} | {low:.3f} to {high:.3f} | {told['q95_cost']:.1f}% | {told['cpt50']:.1f}%"
    print(f"| {name} | {shown} |")
    return {k: v for k, v in told.items() if isinstance(v, float | list)}


def feedback_targets(part: LeftOut) -> Iterable[Target]:
    """By subject and by domain; against the gate's own estimates, and against what a decision expects of the models."""
    strong = part.heads[:, 1]
    decided = np.column_stack([np.clip(strong - part.need, 0.01, 0.99), strong])
    # a client may name the subject as hints.domain; else the domain that was recognised stands for it
    for groups, words in ((list(map(str, part.own.kinds)), "subject named"), (part.own.domains, "domain recognised")):
        for expected, against in ((part.heads, "against the gate"), (decided, "against the decision")):
            low, mean, high = with_feedback(part, expected, groups)
            shown = f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]"
            yield Target(f"gain of 5% fed back, {words}, {against}", f"above 0 in {DRAWS} draws", shown, low > 0)


def _scorer(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("routing_score", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise SystemExit(f"{path} is not there; name the scorer with --scorer")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _draw(curves: dict[str, dict[str, Any]], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(curves), figsize=(11, 4.5))
    for axis, (pair, lines) in zip(axes, curves.items(), strict=True):
        for name, (_, quality, cost) in lines.items():
            axis.plot(cost, quality, label=name, linewidth=2.2 if name == "hivemind" else 1.0)
        axis.set_title(pair)
        axis.set_xlabel("mean price, USD per million tokens")
        axis.set_ylabel("mean quality")
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    main(sys.argv[1:])
