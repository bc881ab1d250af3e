"""Writes what a run came to: evaluation.json, evaluation.md and loss.png."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hivemind.training.evaluation import PARTS, Evaluation

_TITLES = {"heldout": "held-out answers", "questions": "unrelated questions", "text": "plain text"}


def write_report(run: Path, evaluation: Evaluation, losses: Mapping[int, float]) -> None:
    """All three files; each appears whole."""
    _write(run / "evaluation.json", json.dumps(evaluation.to_dict(), indent=1) + "\n")
    _write(run / "evaluation.md", to_markdown(evaluation))
    draw_losses(run / "loss.png", losses)


def to_markdown(evaluation: Evaluation) -> str:
    """The report for people."""
    names = [n for n in ("base", "champion", "candidate") if n in evaluation.scores]
    lines = ["# Evaluation", "", f"**{'Passed' if evaluation.passed else 'Rejected'}**", ""]
    lines += ["| | " + " | ".join(names) + " |", "| --- |" + " ---: |" * len(names)]
    for part in PARTS:
        scores = [evaluation.scores[n][part] for n in names]
        lines.append(f"| loss, {_TITLES[part]} | " + " | ".join(f"{s.loss:.4f}" for s in scores) + " |")
        lines.append(f"| tokens right, {_TITLES[part]} | " + " | ".join(f"{s.accuracy:.1%}" for s in scores) + " |")
    if evaluation.scale != 1:
        lines += ["", f"At full strength it forgot too much; it is judged, and served, at {evaluation.scale:g} of it."]
    lines += ["", "| gate | measured | limit | |", "| --- | ---: | ---: | --- |"]
    lines += [
        f"| {g.name} | {g.value:.4f} | {g.limit:.4f} | {'ok' if g.passed else 'failed'} |" for g in evaluation.gates
    ]
    if evaluation.win_rate is None:
        lines += ["", "No judge compared the answers."]
    for sample in evaluation.samples:
        lines += ["", *(f"- **{name}**: {' '.join(text.split())}" for name, text in _told(sample))]
    return "\n".join(lines) + "\n"


def draw_losses(path: Path, losses: Mapping[int, float]) -> None:
    """The loss by step as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    steps = sorted(losses)
    axes.plot(steps, [losses[s] for s in steps], marker="." if len(steps) < 50 else "")
    axes.set(xlabel="step", ylabel="training loss, nats a token", title="Loss")
    axes.grid(alpha=0.3)
    aside = path.with_name(f".{path.name}")
    figure.savefig(aside, format="png", dpi=120)
    aside.replace(path)


def _told(sample: Any) -> list[tuple[str, str]]:
    return [
        ("question", sample.question), ("expected", sample.expected),
        (f"base ({sample.base_token_s * 1000:.0f} ms a token)", sample.base),
        (f"candidate ({sample.candidate_token_s * 1000:.0f} ms a token)", sample.candidate),
    ]  # fmt: skip


def _write(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)
