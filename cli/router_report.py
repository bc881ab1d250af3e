"""What routing achieved: savings, whether estimates were right, and what exploration says of the choices not taken."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from hivemind.cli.home import CommandError
from hivemind.cli.http_api import MeshApi

PAGES_MAX: Final = 20
PAGE: Final = 500
BINS: Final = 10
_BAR: Final = 30


@dataclass(frozen=True, slots=True)
class Bin:
    """Answers whose estimate lay in one tenth: how many, mean estimate, share that was rated good."""

    low: float
    count: int
    estimate: float
    good: float


@dataclass(frozen=True, slots=True)
class Report:
    """Over the latest records. `regret`: None where too little was explored and rated."""

    requests: int
    rated: int
    spent_micros: int
    saved_micros: int
    reliability: tuple[Bin, ...]
    calibration_error: float | None
    explored: int
    regret: float | None


def records(api: MeshApi) -> list[dict[str, Any]]:
    """Up to 10,000 of the latest records."""
    found: list[dict[str, Any]] = []
    token = ""
    for _ in range(PAGES_MAX):
        page = api.get(f"/api/requests?page_size={PAGE}&page_token={token}")
        found += page["requests"]
        token = page["next_page_token"]
        if not token:
            break
    return found


def report(rows: Sequence[dict[str, Any]]) -> Report:
    """The figures of some records, as /api/requests gives them."""
    answered = [r for r in rows if r["outcome"] == "OK" and r["surface"] != "DECIDE"]
    pairs = [(q, good, _explored(r), _propensity(r)) for r in answered if (q := _estimate(r)) is not None
             and (good := _rating(r)) is not None]  # fmt: skip
    bins = tuple(_bins([(q, good) for q, good, _, _ in pairs]))
    error = sum(b.count * abs(b.estimate - b.good) for b in bins) / len(pairs) if pairs else None
    spent = sum(int(r["cost_micros"]) for r in answered)
    saved = sum(int(r["master_cost_micros"]) - int(r["cost_micros"]) for r in answered if r.get("master_cost_micros"))
    return Report(
        requests=len(answered), rated=len(pairs), spent_micros=spent, saved_micros=saved, reliability=bins,
        calibration_error=error, explored=sum(_explored(r) for r in answered),
        regret=regret([(good, explored, propensity) for _, good, explored, propensity in pairs]),
    )  # fmt: skip


def regret(rated: Sequence[tuple[float, bool, float]]) -> float | None:
    """How much better the runner-up would have been, off-policy: (reward, explored, propensity) each.

    The value of "always the first choice" and of "always the runner-up" by self-normalised inverse propensity scoring
    (Swaminathan and Joachims 2015): sum(w r) / sum(w), with w = 1/propensity where the logged choice agrees, else 0.
    Positive: the runner-up would have been better. None without ratings of both kinds. Only requests that could have
    been explored (propensity below 1) count.
    """
    values = []
    for taken in (True, False):
        agreeing = [(reward, 1 / p) for reward, explored, p in rated if explored == taken and p < 1]
        if not agreeing:
            return None
        values.append(sum(r * w for r, w in agreeing) / sum(w for _, w in agreeing))
    return values[0] - values[1]


def show(console: Console, found: Report) -> None:
    """Prints it."""
    console.print(
        f"{found.requests} answers, {found.spent_micros / 1e6:.4f} USD spent, {found.saved_micros / 1e6:.4f} USD saved "
        f"against sending all to master; {found.rated} rated, {found.explored} explored", highlight=False,
    )  # fmt: skip
    if not found.reliability:
        console.print("No rated answers yet: POST /api/feedback with request_id and rating.", highlight=False)
        return
    console.print("\nestimated  rated good")
    for b in found.reliability:
        bar = "#" * round(b.good * _BAR)
        console.print(f"   {b.estimate:6.2f}  {bar:<{_BAR}} {b.good:.2f} of {b.count}", highlight=False)
    console.print(f"\ncalibration error {found.calibration_error:.3f}", highlight=False)
    if found.regret is None:
        console.print("regret: unknown; too few explored answers were rated", highlight=False)
    else:
        console.print(f"regret: {found.regret:+.3f} (positive: the runner-up would have been better)", highlight=False)


def draw(found: Report, file: Path) -> None:
    """The calibration curve as a PNG; CommandError without matplotlib."""
    try:
        import matplotlib
    except ImportError as error:
        raise CommandError("drawing needs matplotlib; run: pip install 'hivemind[gate]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(5, 5))
    axis.plot([0, 1], [0, 1], color="grey", linewidth=1)
    axis.plot([b.estimate for b in found.reliability], [b.good for b in found.reliability], marker="o")
    axis.set_xlabel("estimated P(good enough)")
    axis.set_ylabel("share rated good")
    figure.tight_layout()
    figure.savefig(file, dpi=110)


def as_json(found: Report) -> dict[str, Any]:
    """For --json."""
    return asdict(found)


def _bins(pairs: Sequence[tuple[float, float]]) -> list[Bin]:
    made = []
    for i in range(BINS):
        inside = [(q, good) for q, good in pairs if i <= min(BINS - 1, int(q * BINS)) < i + 1]
        if inside:
            count = len(inside)
            made.append(Bin(i / BINS, count, sum(q for q, _ in inside) / count, sum(g for _, g in inside) / count))
    return made


def _estimate(record: dict[str, Any]) -> float | None:
    candidates = record["decision"]["candidates"]
    return candidates[0].get("quality") if candidates else None


def _rating(record: dict[str, Any]) -> float | None:
    """1 for good, 0 for bad: the last rating; None without one."""
    ratings = [f["rating"] for f in record["feedback"] if f.get("rating")]
    return float(ratings[-1] > 0) if ratings else None


def _propensity(record: dict[str, Any]) -> float:
    return float(record["decision"]["propensity"])


def _explored(record: dict[str, Any]) -> bool:
    return _propensity(record) < 0.5
