"""The flywheel before one's eyes: `make demo`. Under 15 minutes on two cores; no key, no network.

A mesh serves questions about 20 invented facts of three domains, which only its paid model knows (a scripted server,
the one thing that is made up). The mesh has good answers refined, its small model learns them, adapters are judged
and promoted, and routing follows. At the end the paid model is stopped, and the small one is examined alone.
"""

import argparse
import random
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from bench.closed_loop import WINDOW, Loop, Moment, Plan, closed_loop
from bench.facts import invent
from bench.figures import Figures, ratio

COUNTS: Final = {"towns": 7, "harbour": 7, "library": 6}
CHART: Final = Path("flywheel.png")
_HEAD: Final = ("time", "USD/1,000", "courier", "right", "held-out", "adapter", "learnt", "learner")


def main(arguments: list[str]) -> None:
    """Runs the demo, shows it live, writes the chart and prints the table."""
    parser = argparse.ArgumentParser(prog="demo", description=__doc__)
    parser.add_argument("--seed", type=int, default=None, help="of facts and traffic; drawn where it is not given")
    parser.add_argument("--minutes", type=float, default=10.0, help="of learning at most")
    parser.add_argument("--chart", type=Path, default=CHART)
    options = parser.parse_args(arguments)
    seed = random.randrange(1 << 31) if options.seed is None else options.seed
    plan = Plan(invent(random.Random(seed), COUNTS), seed, learning_s=60 * options.minutes)
    began = time.monotonic()
    print(f"seed {seed}: {len(plan.facts)} facts that no model can know, such as: {plan.facts[0].answer}")
    with closed_loop(plan) as loop:
        print(f"a mesh answers at {loop.base_url}; look at it with `hivemind skills` and /api/adapters/state\n")
        held_out = loop.exam(ways=1)
        off = loop.without_learning()
        print("learning begins; the traffic asks `auto`, as a client would\n")
        with view(sys.stdout.isatty()) as show:
            after = loop.learn(show)
        refinement_usd = loop.refinement_usd()
        loop.stop_master()
        print("\nthe paid model is stopped; the courier is examined alone ...", flush=True)
        exam = loop.exam()
        print(table(off, loop.moments, after, before=held_out, exam=exam))
        print(told(off, after, refinement_usd, loop))
        draw(loop.moments, off, exam, options.chart)
    print(f"\nchart: {options.chart}; all of it took {(time.monotonic() - began) / 60:.1f} minutes")


def table(off: Figures, moments: Sequence[Moment], after: Figures, *, before: float, exam: float) -> str:
    """Before, after, and the same with learning off, in Markdown."""
    first = next((m.figures for m in moments if m.figures.count >= WINDOW // 2), off)
    rows = (
        ("before learning", first, f"{before:.0%}"),
        ("after learning", after, f"{exam:.0%}"),
        ("learning off", off, f"{before:.0%}"),
    )
    head = "| | USD per 1,000 requests | answered by courier | right answers | held-out, courier alone |"
    lines = [
        f"| {name} | {f.usd_per_1000:.3f} | {f.courier_share:.0%} | {f.accuracy:.0%} | {held_out} |"
        for name, f, held_out in rows
    ]
    return "\n".join(("", head, "| --- | ---: | ---: | ---: | ---: |", *lines))


def told(off: Figures, after: Figures, refinement_usd: float, loop: Loop) -> str:
    """What the table leaves out: what learning itself has cost, and when that is earned back."""
    learner = loop.learner()
    saved = off.usd_per_1000 - after.usd_per_1000
    back = f"; earned back after {1000 * refinement_usd / saved:,.0f} requests" if saved > 0 else ""
    fresh = sorted(loop.published.values())
    shown = f"{fresh[len(fresh) // 2]:.0f} s (median of {len(fresh)})" if fresh else "no adapter was published"
    return (
        f"\ncost against learning off: {ratio(after.usd_per_1000, off.usd_per_1000):.2f}\n"
        f"refinement and judging cost {refinement_usd:.4f} USD{back}\n"
        f"learning took {float(learner['cpu_seconds']):.0f} CPU-seconds, {learner['learnt']} examples\n"
        f"from the close of a batch to the first answer of its adapter: {shown}"
    )


def cells(moment: Moment) -> tuple[str, ...]:
    """A moment as the columns of the live view."""
    f, learner = moment.figures, moment.learner
    return (
        f"{moment.at:.0f} s", f"{f.usd_per_1000:.3f}", f"{f.courier_share:.0%}", f"{f.accuracy:.0%}",
        f"{moment.held_out:.0%}", moment.champion or "base model",
        f"{learner.get('learnt', 0)} of {moment.platinum}", str(learner.get("state", "")),
    )  # fmt: skip


class view:
    """The live view: a table that redraws itself on a terminal, else a line a moment. Called with each moment."""

    def __init__(self, is_terminal: bool) -> None:
        self._is_terminal, self._seen, self._live = is_terminal, [], None  # type: tuple[bool, list[Moment], Any]

    def __enter__(self) -> "view":
        if self._is_terminal:
            from rich.live import Live

            self._live = Live(refresh_per_second=2)
            self._live.start()
        else:
            print("  ".join(f"{name:>10}" for name in _HEAD), flush=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, moment: Moment) -> None:
        """Shows a moment."""
        self._seen.append(moment)
        if self._live is None:
            print("  ".join(f"{cell:>10}" for cell in cells(moment)), flush=True)
        else:
            self._live.update(_table(self._seen[-20:]))


def _table(moments: Sequence[Moment]) -> Any:
    from rich.table import Table

    shown = Table(*_HEAD, title="the flywheel, latest requests")
    for moment in moments:
        shown.add_row(*cells(moment))
    return shown


def draw(moments: Sequence[Moment], off: Figures, exam: float, file: Path) -> None:
    """The chart: price and share over time, held-out accuracy, and each promotion."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    at = [m.at for m in moments]
    figure, (above, below) = plt.subplots(2, 1, sharex=True, figsize=(9, 6))
    above.plot(at, [m.figures.usd_per_1000 for m in moments], label="USD per 1,000 requests")
    above.axhline(off.usd_per_1000, color="grey", linestyle="--", label="learning off")
    above.set_ylim(bottom=0)
    above.legend()
    below.plot(at, [m.figures.courier_share for m in moments], label="answered by courier")
    below.plot(at, [m.figures.accuracy for m in moments], label="right answers")
    below.step(at, [m.held_out for m in moments], where="post", label="held-out, courier alone")
    below.plot(at[-1:], [exam], "o", label="the same, paid model stopped")
    for before, now in pairwise(moments):
        if now.champion != before.champion:
            for part in (above, below):
                part.axvline(now.at, color="lightgrey", linewidth=1)
    below.set_ylim(-0.05, 1.05)
    below.set_xlabel("seconds of learning; a grey line is a promotion")
    below.legend()
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main(sys.argv[1:])
