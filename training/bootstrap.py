"""Makes the first adapter: `python -m hivemind.training.bootstrap [--data PATH ...]`.

One-time fine-tuning of the courier to adapters/foundational/champion_v1, from public sets or from files of yours. If it
was stopped, the same command goes on where it was. A mesh that runs is told of the result; one that starts later finds
it.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from hivemind.cli.home import CommandError, data_folder, read_json
from hivemind.cli.http_api import MeshApi
from hivemind.training.adapter_files import sync_folder
from hivemind.training.flags import add_config_flags, config_from_flags
from hivemind.training.mixture import BadData
from hivemind.training.plan import Plan, plan_run, refuse_overwrite
from hivemind.training.run_log import LOG_FILE, read_events
from hivemind.training.sft_config import ConfigError, Gates, check, prepare_run, read_config
from hivemind.training.sft_text import ADAPTER, DONE, STOPPED, UNUSABLE

ROLE: Final = "implementer"
CHAMPION: Final = "foundational/champion_v1"
RUN: Final = "bootstrap"
_REPORTS: Final = ("evaluation.json", "evaluation.md", "loss.png", "data_card.json")
_GATES: Final = Gates(max_questions=0.05, max_text=0.05)
"""Wider than those of later adapters: the first one may change the model's manner."""


def main(arguments: list[str] | None = None) -> int:
    """Plans or trains; answers the exit code, which is that of sft_text."""
    options = _parser().parse_args(arguments)
    console = Console(stderr=True)
    try:
        config = config_from_flags(options, os.environ, role=ROLE, gates=_GATES)
        target = data_folder("adapters", os.environ) / CHAMPION
        check(config)
        if options.dry_run:
            show_plan(console, plan_run(config), target)
            return DONE
        refuse_overwrite(target, force=options.force)
        run = Path(config.home) / "runs" / RUN
        prepare_run(run, config, force=options.force)
        return _bootstrap(console, run, target)
    except (ConfigError, BadData, CommandError) as error:
        console.print(str(error), style="red", markup=False, highlight=False)
        return UNUSABLE


def _bootstrap(console: Console, run: Path, target: Path) -> int:
    code = train_in_process(console, run)
    if code != DONE:
        again = "; the same command goes on from the last checkpoint" if code == STOPPED else ""
        console.print(f"no adapter was made (exit code {code}){again}", style="red", highlight=False)
        return code
    publish(run, target)
    show_result(console, target)
    console.print(register(Path(read_config(run).home), os.environ), highlight=False, markup=False)
    shutil.rmtree(run, ignore_errors=True)
    return DONE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m hivemind.training.bootstrap", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add_config_flags(parser)
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and about what it would take")
    parser.add_argument("--force", action="store_true", help="replace an adapter, or an unfinished run, that is there")
    return parser


def train_in_process(console: Console, run: Path) -> int:
    """Trains in a process of its own and shows its progress; answers its exit code. Ctrl-C: it ends at a checkpoint."""
    command = [sys.executable, "-m", "hivemind.training.sft_text", "--run", str(run)]
    with (run / "output.log").open("ab") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env={**os.environ, "TQDM_DISABLE": "1"}, start_new_session=True
        )
        with _passing_on_signals(process):
            _follow(console, run, process)
            code = process.wait()
    last = next((e for e in reversed(list(read_events(run / LOG_FILE))) if "reason" in e), None)
    if code not in (DONE, STOPPED) and last is not None:
        console.print(str(last["reason"]), style="red", markup=False, highlight=False)
    return code


@contextmanager
def _passing_on_signals(process: "subprocess.Popen[bytes]") -> Iterator[None]:
    """The child ends itself after a checkpoint; we wait for it."""
    before = {n: signal.signal(n, lambda *_: process.terminate()) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _follow(console: Console, run: Path, process: "subprocess.Popen[bytes]") -> None:
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        TextColumn("loss {task.fields[loss]}, {task.fields[speed]} tokens/s"),
    )  # fmt: skip
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("preparing", total=None, loss="-", speed="-")
        seen = 0
        while True:
            ended = process.poll() is not None
            events = list(read_events(run / LOG_FILE))
            for event in events[seen:]:
                _show(progress, task, event)
            seen = len(events)
            if ended:
                return
            time.sleep(0.5)


def _show(progress: Progress, task: Any, event: Mapping[str, Any]) -> None:
    if event["event"] == "step":
        progress.update(
            task, description="training", completed=event["step"], total=event["max_steps"],
            loss=f"{event['loss']:.3f}", speed=event["tokens_per_second"],
        )  # fmt: skip
    elif event["event"] == "started":
        progress.console.print(f"back end {event['backend']}: {event['reason']}", highlight=False, markup=False)
    elif event["event"] == "evaluating":
        progress.update(task, description="evaluating")


def publish(run: Path, target: Path) -> None:
    """Puts the adapter and its reports where the mesh looks for the first champion, all at once."""
    target.parent.mkdir(parents=True, exist_ok=True)
    aside, old = (target.with_name(f".{target.name}.{kind}") for kind in ("new", "old"))
    for left in (aside, old):
        shutil.rmtree(left, ignore_errors=True)
    try:
        shutil.copytree(run / ADAPTER, aside)
        for name in _REPORTS:
            shutil.copy2(run / name, aside / name)
        sync_folder(aside)
        if target.exists():
            target.rename(old)
        aside.rename(target)
    finally:
        for left in (aside, old):
            shutil.rmtree(left, ignore_errors=True)


def register(home: Path, environment: Mapping[str, str]) -> str:
    """Tells a running mesh of the champion; answers one sentence on how that went."""
    mesh = read_json(home / "run" / "mesh.json")
    later = "the mesh takes it up when it starts"
    if not isinstance(mesh, dict):
        return f"no mesh runs on {home}; {later}"
    body = {"role": ROLE, "path": str(data_folder("adapters", environment) / CHAMPION)}
    api = MeshApi(str(mesh["host"]), int(mesh["port"]))
    try:
        name = api.post("/api/adapters", body)["id"]
    except CommandError as error:
        return f"the running mesh did not register it: {error}; {later}"
    told = f"registered with the running mesh as {name}"
    try:
        return f"{told}{_take_office(api, name)}"
    except CommandError as error:
        return f"{told}, which could not take office: {error}; {later}"


def _take_office(api: MeshApi, name: str) -> str:
    """Makes an adapter champion where nobody is, as the mesh does at its start; answers what became of that."""
    preview = api.get(f"/api/adapters/preview/{ROLE}?adapter_id={name}")
    champion = preview["expected_champion"]
    if champion not in ("", name):
        return f"; {champion} stays champion"
    if not champion:
        wish = {
            "adapter_id": name, "preview_hash": preview["preview_hash"], "expected_champion": "", "override": True,
            "reason": "the foundational adapter, by the bootstrap",
        }  # fmt: skip
        api.post(f"/api/adapters/promote/{ROLE}", wish)
    return f", which serves {ROLE} now"


def show_plan(console: Console, plan: Plan, target: Path) -> None:
    """Prints what a run would do."""
    table = Table(box=None, show_header=False)
    table.add_row("back end", f"{plan.backend} ({plan.reason})")
    table.add_row(
        "samples", f"{plan.samples} to train on, {plan.heldout or 'some'} held out, {plan.tokens} tokens a pass"
    )
    table.add_row("steps", str(plan.steps))
    table.add_row("memory", "unknown" if plan.memory_bytes is None else f"about {plan.memory_bytes / 1e9:.1f} GB")
    table.add_row("time", "unknown" if plan.cpu_s is None else f"about {plan.cpu_s / 60:.1f} CPU-minutes")
    table.add_row("result", str(target) + (" (there already: needs --force)" if target.exists() else ""))
    for note in plan.notes:
        table.add_row("note", note)
    console.print(table, highlight=False, markup=False)


def show_result(console: Console, target: Path) -> None:
    """Prints losses and sample answers before and after."""
    found = json.loads((target / "evaluation.json").read_text(encoding="utf-8"))
    table = Table("loss, nats a token", "before", "after", box=None)
    for part in found["scores"]["base"]:
        before, after = (found["scores"][who][part]["loss"] for who in ("base", "candidate"))
        table.add_row(part, f"{before:.3f}", f"{after:.3f}")
    console.print(table)
    for sample in found["samples"]:
        for name, key in (("question", "question"), ("before", "base"), ("after", "candidate")):
            console.print(f"{name:>8}: {' '.join(sample[key].split())}", highlight=False, markup=False)
    console.print(f"{target}: adapter, evaluation.md, loss.png", highlight=False, markup=False)


if __name__ == "__main__":
    sys.exit(main())
