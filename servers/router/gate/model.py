"""The gate's model: two heads (the weak and the strong model of a pair) out of a forest and a line, calibrated.

A forest of extremely randomised trees (Geurts et al. 2006) knows the questions that it has seen the like of; a ridge
regression over the same features goes on where it has not. Their mean, weighted by cross-validation, is calibrated by a
broken line. Where a domain had little training data (kappa pseudo-requests, Beta-binomial shrinkage) the
expected gain of the strong model moves towards FAR_GAIN, more where the other recordings saw the strong model gain more
than usual, less where they saw less: unknown territory goes to the stronger model, the hard part of it first.
"""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from hivemind.servers.router.gate.features import Features
from hivemind.servers.router.gate.wordpiece import Floats, PieceTable

HERE: Final = Path(__file__).resolve().parent
TABLE_FILE: Final = HERE / "pieces.safetensors"
MODEL_FILE: Final = HERE / "model.safetensors"
GENERIC: Final = "generic"
KAPPA: Final = 50.0
"""Requests of a domain in training at which half of the estimate is the model's own."""
FAR_GAIN: Final = 0.4
"""What the strong model is taken to gain where nothing is known."""
_CACHED: Final = 10_000
_LEAST: Final = 0.01


@dataclass(frozen=True, slots=True)
class Estimate:
    """P(good enough) of the weak and the strong model, the share of it that is not known, and the domain.

    `far`: what the strong model is taken to gain as far as it is not known, in [-1,1].
    """

    weak: float
    strong: float
    unknown: float
    domain: str
    far: float = FAR_GAIN

    @property
    def need(self) -> float:
        """How much the strong model is needed: expected gain, unknown territory counted as `far`. In [-1,1]."""
        return (1 - self.unknown) * (self.strong - self.weak) + self.unknown * self.far


@dataclass(frozen=True, slots=True)
class Forest:
    """Trees side by side, padded: feature (trees, nodes), -1 at a leaf; value (trees, nodes, 2)."""

    feature: NDArray[np.int16]
    threshold: Floats
    left: NDArray[np.int16]
    right: NDArray[np.int16]
    value: Floats

    def predict(self, x: Floats) -> Floats:
        """Mean leaf value over the trees, shape (2,)."""
        trees = np.arange(len(self.feature))
        node = np.zeros(len(trees), dtype=np.int64)
        while True:
            at = self.feature[trees, node]
            inner = at >= 0
            if not inner.any():
                found: Floats = self.value[trees, node].mean(axis=0)
                return found
            low = x[np.maximum(at, 0)] <= self.threshold[trees, node]
            following = np.where(low, self.left[trees, node], self.right[trees, node])
            node = np.where(inner, following, node)


@dataclass(frozen=True, slots=True)
class PairModel:
    """What is known of a pair of models.

    `share`: the forest's part; `calibration`: see calibrated(); `usual`: mean gain of the strong model.
    """

    forest: Forest
    columns: NDArray[np.int64]
    line: Floats
    offset: Floats
    share: float
    calibration: Floats
    seen: Mapping[str, int]
    usual: float

    def heads(self, x: Floats, trees: Floats) -> Floats:
        """P(good enough), weak and strong, calibrated; `trees` is what the forest says."""
        linear = x[self.columns] @ self.line + self.offset
        found: Floats = calibrated(self.share * trees + (1 - self.share) * linear, self.calibration)
        return found


def calibrated(raw: NDArray[Any], calibration: NDArray[Any]) -> NDArray[Any]:
    """Both heads, (..., 2), each moved by what it was wrong by at about that value.

    `calibration`: (heads, 2, points): values, ascending, and corrections there; linear between them.
    """
    moved = [raw[..., head] + np.interp(raw[..., head], *calibration[head]) for head in (0, 1)]
    found: NDArray[Any] = np.clip(np.stack(moved, axis=-1), _LEAST, 1 - _LEAST)
    return found


def far_gain(surplus: NDArray[Any]) -> NDArray[Any]:
    """What the strong model is taken to gain in unknown territory; `surplus`: by how much more than usual elsewhere."""
    return np.clip(FAR_GAIN + surplus, -1, 1)


class Gate:
    """Estimates for prompts, cached by their hash. Not for several threads at once."""

    def __init__(self, table: Path = TABLE_FILE, model: Path = MODEL_FILE) -> None:
        self.table: Final = PieceTable(table)
        self._features = Features(self.table)
        self.pairs: Final = load_pairs(model, self._features.names)
        self._cache: OrderedDict[bytes, Mapping[str, Estimate]] = OrderedDict()

    def estimate(self, prompt: str, pair: str = GENERIC) -> Estimate:
        """The estimate for a pair that was recorded, or for one that never was. KeyError for an unknown name."""
        key = hashlib.blake2b(prompt.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        found = self._cache.get(key)
        if found is None:
            found = self._cache[key] = self._estimates(prompt)
            if len(self._cache) > _CACHED:
                self._cache.popitem(last=False)
        return found[pair]

    def _estimates(self, prompt: str) -> Mapping[str, Estimate]:
        x, domain = self._features.of(prompt)
        trees = {name: model.forest.predict(x) for name, model in self.pairs.items()}
        surplus = {name: float(t[1] - t[0]) - self.pairs[name].usual for name, t in trees.items()}
        found: dict[str, Estimate] = {}
        for name, model in self.pairs.items():
            weak, strong = model.heads(x, trees[name])
            unknown = KAPPA / (KAPPA + model.seen.get(domain, 0))
            elsewhere = np.array([s for other, s in surplus.items() if other != name] or [0.0])
            far = float(far_gain(elsewhere.mean()))
            found[name] = Estimate(float(weak), float(strong), unknown, domain, far)
        each = list(found.values())
        seen = sum(model.seen.get(domain, 0) for model in self.pairs.values())
        found[GENERIC] = Estimate(
            sum(e.weak for e in each) / len(each), sum(e.strong for e in each) / len(each),
            KAPPA / (KAPPA + seen), domain,
        )  # fmt: skip
        return found


def load_pairs(file: Path, names: tuple[str, ...]) -> dict[str, PairModel]:
    """The models in a file; ValueError if it was made for other features."""
    with safe_open(file, framework="np") as opened:
        about = json.loads(opened.metadata()["about"])
        if tuple(about["features"]) != names:
            raise ValueError(f"{file} was trained on other features; train it again")
        return {
            name: PairModel(
                forest=Forest(
                    opened.get_tensor(f"{name}.feature"),
                    opened.get_tensor(f"{name}.threshold").astype(np.float32),
                    opened.get_tensor(f"{name}.left"),
                    opened.get_tensor(f"{name}.right"),
                    opened.get_tensor(f"{name}.value").astype(np.float32),
                ),
                columns=opened.get_tensor(f"{name}.columns").astype(np.int64),
                line=opened.get_tensor(f"{name}.line"),
                offset=opened.get_tensor(f"{name}.offset"),
                share=float(pair["share"]),
                calibration=opened.get_tensor(f"{name}.calibration"),
                seen=pair["seen"],
                usual=float(pair["usual"]),
            )
            for name, pair in about["pairs"].items()
        }
