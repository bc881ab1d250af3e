"""Adapters from the command line: who is champion, who challenges, on what evidence, with a chart of how it grew."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hivemind.cli.home import CommandError
from hivemind.cli.http_api import MeshApi

STEPS: Final = (0.01, 0.05, 0.1, 0.25, 0.5)
PROMOTE_AT: Final = 100.0
"""The e-value from which a challenger counts as better."""
_PAGE: Final = 500


def adapters(api: MeshApi, role: str) -> dict[str, Any]:
    """The newest adapters, of a role or of all."""
    found: dict[str, Any] = api.get(f"/api/adapters?{urlencode({'role': role, 'page_size': _PAGE})}")
    return found


def state(api: MeshApi) -> dict[str, Any]:
    """The state of every role."""
    found: dict[str, Any] = api.get("/api/adapters/state")
    return found


def preview(api: MeshApi, role: str, adapter: str) -> dict[str, Any]:
    """What promoting would do."""
    found: dict[str, Any] = api.get(f"/api/adapters/preview/{role}?{urlencode({'adapter_id': adapter})}")
    return found


def promote(api: MeshApi, role: str, adapter: str, *, override: bool, reason: str) -> dict[str, Any]:
    """Promotes the newest challenger, or one adapter by its preview of this moment; by override without evidence."""
    body: dict[str, Any] = {"reason": reason} if reason else {}
    if override:
        body |= {"adapter_id": adapter, "override": True}
    elif adapter:
        now = preview(api, role, adapter)
        body |= {k: now[k] for k in ("adapter_id", "preview_hash", "expected_champion")}
    found: dict[str, Any] = api.post(f"/api/adapters/promote/{role}", body)
    return found


def rollback(api: MeshApi, role: str, reason: str) -> dict[str, Any]:
    """Goes back to the champion before."""
    found: dict[str, Any] = api.post(f"/api/adapters/rollback/{role}", {"reason": reason})
    return found


def set_traffic(api: MeshApi, role: str, adapter: str, share: str) -> dict[str, Any]:
    """Sets a share: `10%`, `0.1`, `shadow`, `next` (the next step of 1, 5, 10, 25, 50%) or `0`."""
    body = {"adapter_id": adapter, "shadow": share == "shadow", "traffic": 0.0}
    if share == "next":
        body["traffic"] = _next_step(state(api), role, adapter)
    elif share != "shadow":
        body["traffic"] = _share(share)
    found: dict[str, Any] = api.post(f"/api/adapters/traffic/{role}", body)
    return found


def register(api: MeshApi, role: str, path: str, parent: str) -> dict[str, Any]:
    """Registers a directory."""
    found: dict[str, Any] = api.post("/api/adapters", {"role": role, "path": path, "parent": parent})
    return found


def history(api: MeshApi, role: str, adapter: str) -> dict[str, Any]:
    """What happened to a role, newest first, and how the evidence of one adapter grew: by default that of the newest
    challenger, else of the champion."""
    events = api.get(f"/api/adapters/events?{urlencode({'role': role, 'page_size': _PAGE})}")["events"]
    roles = [r for r in state(api)["roles"] if r["role"] == role]
    if not roles:
        raise CommandError(f"there is no role {role}; `hivemind adapters state` lists them")
    challengers = sorted(c["adapter_id"] for c in roles[0]["challenges"])
    chosen = adapter or (challengers[-1] if challengers else roles[0]["champion"])
    points = preview(api, role, chosen)["points"] if chosen else []
    return {"role": role, "events": events, "adapter_id": chosen, "points": points}


def show_adapters(console: Console, data: dict[str, Any]) -> None:
    """Prints a table of adapters."""
    table = Table("adapter", "state", "rank", "base model", "MB", "parent", "created", "evaluation", box=None)
    for a in data["adapters"]:
        evaluation = ", ".join(f"{k} {v:g}" for k, v in a["evaluation"].items())
        size = f"{int(a['size_bytes']) / 1e6:.1f}"
        table.add_row(
            a["id"], a["state"].lower(), str(a["rank"]), a["base_model"], size, a["parent"], a["create_time"][:19],
            escape(evaluation),
        )  # fmt: skip
    console.print(table)


def show_state(console: Console, data: dict[str, Any]) -> None:
    """Prints each role with its challengers and replicas."""
    for role in data["roles"]:
        show_role(console, role)


def show_role(console: Console, role: dict[str, Any]) -> None:
    """Prints one role."""
    before = f", before it {role['previous_champion']}" if role["previous_champion"] else ""
    console.print(f"{role['role']}: champion {role['champion'] or 'none (base model)'}{before}", highlight=False)
    if role["challenges"]:
        table = Table("challenger", "traffic", "pairs", "win rate", "e-value", "requests", "errors", "p95 s", box=None)
        for c in role["challenges"]:
            e = c["evidence"]
            table.add_row(
                c["adapter_id"], "shadow" if c["shadow"] else f"{c['traffic']:.0%}", e["pairs"], _win_rate(e),
                f"{e['e_value']:.3g}", e["requests"], f"{e['error_rate']:.1%}", f"{_seconds(e['latency_p95']):.2f}",
            )  # fmt: skip
        console.print(table)
    for r in role["replicas"]:
        held = ", ".join(r["adapters"]) or "nothing"
        health = "" if r["healthy"] else ", does not answer"
        console.print(escape(f"  {r['address']} holds {held}{health} {r['note']}"), highlight=False)


def show_preview(console: Console, data: dict[str, Any]) -> None:
    """Prints a preview."""
    e = data["evidence"]
    console.print(f"{data['adapter_id']}: {data['verdict']}, because {data['reason']}", highlight=False)
    table = Table("", data["adapter_id"], data["expected_champion"] or "base model", box=None)
    table.add_row("win rate", _win_rate(e), "")
    table.add_row("e-value", f"{e['e_value']:.3g} (promotes at {PROMOTE_AT:g})", "")
    table.add_row("requests", e["requests"], e["champion_requests"])
    table.add_row("errors", f"{e['error_rate']:.2%}", f"{e['champion_error_rate']:.2%}")
    latencies = (f"{_seconds(e[k]):.2f} s" for k in ("latency_p95", "champion_latency_p95"))
    table.add_row("p95 latency", *latencies)
    console.print(table)
    cost = int(data["cost_per_1000_change_micros"]) / 1e6
    console.print(
        f"it would serve {data['requests_per_day']:.0f} requests a day, p95 {data['latency_p95_change_s']:+.2f} s, "
        f"{cost:+.4f} USD per 1,000 requests; still needed: {data['requests_needed']} requests", highlight=False,
    )  # fmt: skip


def show_history(console: Console, data: dict[str, Any]) -> None:
    """Prints the events and the chart."""
    table = Table("#", "time", "what", "adapter", "before", "why", box=None)
    for e in data["events"]:
        table.add_row(
            e["sequence"], e["time"][:19], e["kind"].lower(), e["adapter_id"] or "base model", e["previous_champion"],
            escape(e["reason"]),
        )  # fmt: skip
    console.print(table)
    if not data["points"]:
        console.print("No pairs were judged yet, so there is nothing to draw.", highlight=False)
        return
    console.print(
        chart(data["points"], data["adapter_id"], width=min(console.width, 100)), markup=False, highlight=False
    )


def chart(points: Sequence[Mapping[str, Any]], adapter: str, *, width: int) -> str:
    """Win rate with its bounds, and the e-value, over the pairs, as text."""
    import plotext

    figure, pairs = plotext.figure, [int(p["pairs"]) for p in points]
    texts = []
    for title, lines, limits, level in _curves(points, adapter):
        figure.clear()
        figure.theme("colorless")
        figure.plot_size(width, 14)
        for mark, values in zip("•--", lines, strict=False):
            figure.draw(figure.signal(pairs, values, marker=mark))
        figure.line(level)
        figure.ruler("y").lim(*limits)
        figure.title(title)
        figure.label("pairs judged", "x")
        texts.append(str(plotext.uncolorize(str(figure.build()))))
    return "\n".join(texts)


def draw(data: Mapping[str, Any], file: Path) -> None:
    """The chart as a PNG; CommandError without matplotlib or without anything to draw."""
    if not data["points"]:
        raise CommandError("no pairs were judged yet, so there is nothing to draw")
    try:
        import matplotlib
    except ImportError as error:
        raise CommandError("drawing needs matplotlib; run: pip install 'hivemind[gate]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    pairs = [int(p["pairs"]) for p in data["points"]]
    figure, axes = pyplot.subplots(2, 1, sharex=True, figsize=(7, 6))
    for axis, (title, lines, limits, level) in zip(axes, _curves(data["points"], data["adapter_id"]), strict=True):
        axis.plot(pairs, lines[0], marker=".")
        if len(lines) == 3:
            axis.fill_between(pairs, lines[1], lines[2], alpha=0.2)
        axis.axhline(level, color="grey", linewidth=1)
        axis.set_ylim(*limits)
        axis.set_title(title)
    axes[-1].set_xlabel("pairs judged")
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def _curves(
    points: Sequence[Mapping[str, Any]], adapter: str
) -> list[tuple[str, list[list[float]], tuple[float, float], float]]:
    """For each of the two charts: title, curves, limits, and the level that counts."""
    rates = [[float(p[k]) for p in points] for k in ("win_rate", "win_rate_lower", "win_rate_upper")]
    values = [math.log10(max(float(p["e_value"]), 1e-9)) for p in points]
    level = math.log10(PROMOTE_AT)
    limits = (min(-1.0, *values) - 0.2, max(level, *values) + 0.5)
    return [
        (f"win rate of {adapter}, with its 95% confidence sequence", rates, (0.0, 1.0), 0.5),
        (f"evidence that it is better: log10 of the e-value (promotes at {level:g})", [values], limits, level),
    ]


def _win_rate(evidence: Mapping[str, Any]) -> str:
    if not int(evidence["wins"]) + int(evidence["losses"]):
        return "-"
    return f"{evidence['win_rate']:.1%} ({evidence['win_rate_lower']:.1%} to {evidence['win_rate_upper']:.1%})"


def _seconds(duration: str | None) -> float:
    return float((duration or "0s").rstrip("s"))


def _share(text: str) -> float:
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        raise CommandError(f"{text!r}: give a share such as 10% or 0.1, or shadow, or next") from None


def _next_step(found: Mapping[str, Any], role: str, adapter: str) -> float:
    now = next(
        (
            c["traffic"]
            for r in found["roles"]
            if r["role"] == role
            for c in r["challenges"]
            if c["adapter_id"] == adapter
        ),
        0.0,
    )
    step = next((s for s in STEPS if s > now + 1e-9), None)
    if step is None:
        raise CommandError(f"{adapter} has {now:.0%} already, which is the last step; promote it, or give it less")
    return step
