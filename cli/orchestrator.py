"""The loop from the command line: who leads, what the cycles did, and what the mesh is good at."""

from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hivemind.cli.home import CommandError
from hivemind.cli.http_api import MeshApi

_BAR = 30
_COLOURS = {"DONE": "green", "SKIPPED": "dim", "FAILED": "red", "OUT_OF_BUDGET": "yellow"}


def status(api: MeshApi) -> dict[str, Any]:
    """Who leads, and the last cycles."""
    found: dict[str, Any] = api.get("/api/orchestrator")
    return found


def pause(api: MeshApi, reason: str) -> dict[str, Any]:
    """Pauses the loop."""
    found: dict[str, Any] = api.post("/api/orchestrator:pause", {"reason": reason})
    return found


def resume(api: MeshApi) -> dict[str, Any]:
    """Lets the loop go on."""
    found: dict[str, Any] = api.post("/api/orchestrator:resume", {})
    return found


def run_cycle(api: MeshApi, steps: list[str]) -> dict[str, Any]:
    """Has a cycle run now; answers when it has ended."""
    found: dict[str, Any] = api.post("/api/orchestrator:cycle", {"steps": steps})
    return found


def history(api: MeshApi, count: int) -> dict[str, Any]:
    """The latest cycles, newest first."""
    found: dict[str, Any] = api.get(f"/api/orchestrator/cycles?{urlencode({'page_size': count})}")
    return found


def skills(api: MeshApi) -> dict[str, Any]:
    """The cognitive map."""
    found: dict[str, Any] = api.get("/api/cognitive-map")
    return found


def show_status(console: Console, data: dict[str, Any]) -> None:
    """Prints the status."""
    leader = f"{data['leader']} leads under token {data['fencing_token']}" if data["leader"] else "nobody leads"
    console.print(f"{leader}; {data['replica']} answers", highlight=False, markup=False)
    if data["paused"]:
        console.print(f"paused: {data['pause_reason'] or 'no reason was given'}", highlight=False, markup=False)
    elif data.get("next_cycle_time"):
        doing = f"at {data['current_step']} now; " if data["current_step"] else ""
        console.print(f"{doing}next cycle at {data['next_cycle_time'][:19]}", highlight=False, markup=False)
    if data["cycles"]:
        show_cycle(console, data["cycles"][0])


def show_cycle(console: Console, cycle: dict[str, Any]) -> None:
    """Prints one cycle."""
    wish = ", asked for" if cycle["requested"] else ""
    took = f"{cycle['start_time'][:19]}, {_seconds(cycle['duration']):.2f} s"
    console.print(f"cycle {cycle['id'][:8]}, {took}, token {cycle['fencing_token']}{wish}", highlight=False)
    table = Table("step", "outcome", "s", "USD", "what", box=None)
    for step in cycle["steps"]:
        colour = _COLOURS.get(step["outcome"], "")
        table.add_row(
            step["name"], f"[{colour}]{step['outcome'].lower()}[/]", f"{_seconds(step['duration']):.2f}",
            f"{int(step['cost_micros']) / 1e6:.6f}", escape(step["note"]),
        )  # fmt: skip
    console.print(table)


def show_history(console: Console, data: dict[str, Any]) -> None:
    """Prints cycles, a line each."""
    table = Table("time", "s", "token", "leader", "steps", "USD", box=None)
    for cycle in data["cycles"]:
        steps = " ".join(f"[{_COLOURS.get(s['outcome'], '')}]{s['name']}[/]" for s in cycle["steps"])
        cost = sum(int(s["cost_micros"]) for s in cycle["steps"]) / 1e6
        table.add_row(
            cycle["start_time"][:19], f"{_seconds(cycle['duration']):.2f}", cycle["fencing_token"], cycle["leader"],
            steps, f"{cost:.6f}",
        )  # fmt: skip
    console.print(table)


def show_skills(console: Console, data: dict[str, Any]) -> None:
    """Prints a bar a domain: solid up to the confidence, light up to the mean."""
    if not data["skills"]:
        console.print("Nothing is known yet: the map grows with platinum examples and feedback.", highlight=False)
        return
    table = Table("domain", "", "confidence", "mean", "n", "improved by", box=None)
    for skill in data["skills"]:
        table.add_row(
            escape(skill["name"]), bar(skill["confidence"], skill["mean"]), f"{skill['confidence']:.2f}",
            f"{skill['mean']:.2f}", f"{skill['n']:.1f}", ", ".join(skill["improved_by"][-2:]),
        )  # fmt: skip
    console.print(table)
    bad = f", {data['bad_lines']} bad lines" if int(data["bad_lines"]) else ""
    console.print(f"up to sequence {data['ledger_sequence']} of the ledger{bad}", style="dim", highlight=False)


def bar(confidence: float, mean: float) -> str:
    """A bar of fixed width."""
    solid, light = round(confidence * _BAR), round(mean * _BAR)
    return "█" * solid + "░" * max(0, light - solid) + " " * (_BAR - max(solid, light))


def draw_skills(data: dict[str, Any], file: Path) -> None:
    """The bars as a PNG; CommandError without matplotlib or without anything to draw."""
    if not data["skills"]:
        raise CommandError("nothing is known yet, so there is nothing to draw")
    try:
        import matplotlib
    except ImportError as error:
        raise CommandError("drawing needs matplotlib; run: pip install 'hivemind[gate]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = [s["name"] for s in data["skills"]]
    figure, axis = pyplot.subplots(figsize=(7, 1.5 + 0.35 * len(names)))
    axis.barh(names, [s["mean"] for s in data["skills"]], color="#c9d7e8", label="mean")
    axis.barh(names, [s["confidence"] for s in data["skills"]], color="#2b6cb0", label="confidence (lower bound)")
    axis.set_xlim(0, 1)
    axis.invert_yaxis()
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncol=2, frameon=False)
    axis.set_title("what the mesh is good at by itself")
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def _seconds(duration: str | None) -> float:
    return float((duration or "0s").rstrip("s"))
