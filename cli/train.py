"""`hivemind train ...` and `hivemind bootstrap`: jobs of the running mesh, and the first adapter without one."""

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from hivemind.cli.home import CommandError, data_folders, read_json
from hivemind.cli.http_api import MeshApi

_STEERING: Final = ("pause", "resume", "drain")
_GOOD: Final = ("SUCCEEDED", "REJECTED")


@dataclass(frozen=True, slots=True)
class Wish:
    """What `train start` was given; None and empty: not given."""

    role: str
    paths: Sequence[str]
    platinum: bool
    mixture: str
    base_model: str
    recipe: Mapping[str, Any]
    max_minutes: float
    max_cost_usd: float
    idempotency_key: str


def order_of(wish: Wish, home: Path) -> dict[str, Any]:
    """The body of POST /api/train. Paths are taken from the folder at hand and must lie in the state folder."""
    body: dict[str, Any] = {k: v for k, v in wish.recipe.items() if v not in (None, "")}
    body = {"recipe": body} if body else {}
    if wish.paths or wish.platinum or wish.mixture:
        paths = [_inside(path, home) for path in wish.paths]
        body["data"] = {"paths": paths, "platinum": wish.platinum, "mixture": wish.mixture}
    for name in ("role", "base_model", "idempotency_key"):
        if value := getattr(wish, name):
            body[name] = value
    if wish.max_minutes:
        body["max_duration"] = f"{wish.max_minutes * 60:g}s"
    if wish.max_cost_usd:
        body["max_cost_micros"] = round(wish.max_cost_usd * 1e6)
    return body


def jobs(api: MeshApi) -> Iterator[dict[str, Any]]:
    """All jobs, newest first."""
    token = ""
    while True:
        page = api.get(f"/api/train?page_size=500&page_token={token}")
        yield from page["jobs"]
        token = page["next_page_token"]
        if not token:
            return


def show_jobs(console: Console, found: Sequence[Mapping[str, Any]]) -> None:
    """Prints a table of jobs."""
    columns = (Column(name, no_wrap=True) for name in ("job", "state", "steps", "loss"))
    table = Table(*columns, Column("what came of it", overflow="fold"), box=None)
    for job in found:
        progress = job["progress"]
        steps = f"{progress['step']}/{progress['max_steps']}" if progress["max_steps"] else ""
        loss = f"{progress['loss']:.3f}" if progress["step"] else ""
        outcome = job["adapter_id"] or job["error"] or job["note"]
        table.add_row(job["id"], job["state"], steps, loss, escape(outcome))
    console.print(table)


def show_job(console: Console, job: Mapping[str, Any]) -> None:
    """Prints one job."""
    outcome = job["adapter_id"] or job["error"] or job["note"]
    console.print(f"{job['id']}  {job['state']}{'  ' + outcome if outcome else ''}", highlight=False, markup=False)


def watch(api: MeshApi, console: Console, job_id: str) -> dict[str, Any]:
    """Shows a job's progress until it ends; answers the job. CommandError if it failed or was cancelled."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TextColumn("{task.fields[told]}"), TimeElapsedColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("training", total=1, told="")
        for message in api.lines(f"/api/train/{job_id}:watch"):
            if "progress" in message:
                _advance(bar, task, message["progress"])
            elif "final" in message:
                job: dict[str, Any] = message["final"]
                break
            else:
                raise CommandError(str(message.get("error", {}).get("message") or "the watch broke off"))
        else:
            raise CommandError(f"the watch broke off; the job goes on: hivemind train watch {job_id}")
    if job["state"] not in _GOOD:
        raise CommandError(f"job {job_id} is {job['state']}{': ' + job['error'] if job['error'] else ''}")
    return job


def learner(api: MeshApi, what: str, role: str, reason: str) -> dict[str, Any]:
    """The online learner of a role, after it was told to pause, resume or drain where `what` says so."""
    if not what:
        found: dict[str, Any] = api.get(f"/api/learner?{urlencode({'role': role})}")
        return found
    if what not in _STEERING:
        raise CommandError(f"{what!r} is nothing that a learner can be told; say pause, resume or drain")
    body = {"role": role, "reason": reason} if what == "pause" else {"role": role}
    told: dict[str, Any] = api.post(f"/api/learner:{what}", body)
    return told


def show_learner(console: Console, data: Mapping[str, Any]) -> None:
    """Prints a learner."""

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False)

    say(f"{data['role']}  {data['state']}{'  ' + data['note'] if data['note'] else ''}")
    say(f"examples: {data['waiting']} wait, {data['learnt']} learnt, {data['held_out']} held out")
    for reason, count in sorted(data["set_aside"].items()):
        say(f"  not learnt, {reason}: {count}")
    if data["distrusted_tenants"]:
        say(f"  distrusted, as checked answers contradict them: {', '.join(data['distrusted_tenants'])}")
    say(f"work: {data['batches']} batches, {data['steps']} steps, {data['cpu_seconds']:.0f} CPU-s")
    last = f", the last {data['adapter_id']} at {data['publish_time']}" if data["adapter_id"] else ""
    say(f"checks: {data['published']} published{last}; {data['refused']} refused")
    for name, value in sorted(data["evaluation"].items()):
        say(f"  {name} {value:.4g}")


def forgotten(home: Path, datasets: Path, found: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The jobs that learnt from an example that was forgotten since, with those examples, by their data cards.

    A job whose range of platinum sequences holds a forgotten one, but whose card is gone, is listed without examples.
    """
    tombs = _tombstones(datasets)
    listed = []
    for job in found:
        ids = _card_ids(home / "runs" / job["id"] / "data_card.json")
        low, high = int(job["first_sequence"]), int(job["last_sequence"])
        hit = sorted(ids & tombs.keys()) if ids is not None else []
        doubtful = ids is None and high > 0 and any(low <= s <= high for s in tombs.values() if s)
        if hit or doubtful:
            listed.append({"job": job["id"], "adapter_id": job["adapter_id"], "state": job["state"], "forgotten": hit})
    return listed


def show_forgotten(console: Console, listed: Sequence[Mapping[str, Any]]) -> None:
    """Prints what `forgotten` found."""
    if not listed:
        console.print("no job learnt from an example that was forgotten since")
        return
    table = Table("adapter", "job", "state", "forgotten examples it learnt from", box=None)
    for one in listed:
        ids = ", ".join(one["forgotten"]) or "unknown: its data card is gone, but its range holds some"
        table.add_row(one["adapter_id"] or "none", one["job"], one["state"], ids)
    console.print(table)


def bootstrap(arguments: Sequence[str], home: Path) -> None:
    """Becomes `python -m hivemind.training.bootstrap`; does not return."""
    environment = {**os.environ, **data_folders(os.environ), "HIVEMIND_HOME": str(home)}
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, "-m", "hivemind.training.bootstrap", *arguments], environment)


def _advance(bar: Progress, task: TaskID, progress: Mapping[str, Any]) -> None:
    if not progress["max_steps"]:
        return
    eta_s = float(str(progress.get("eta") or "0s").rstrip("s"))
    told = f"loss {progress['loss']:.3f}, {progress['tokens_per_second']:.0f} tokens/s, {eta_s:.0f} s left"
    bar.update(task, total=progress["max_steps"], completed=progress["step"], told=told)


def _inside(path: str, home: Path) -> str:
    here = Path(path).expanduser().resolve()
    if here.exists() and not here.is_relative_to(home.resolve()):
        raise CommandError(f"{path} is outside {home}, and the mesh reads only what is in it: copy it there")
    return str(here) if here.exists() else path


def _card_ids(card: Path) -> set[str] | None:
    """The platinum examples that a run learnt from; None where its card is gone."""
    data = read_json(card)
    platinum = data.get("platinum") if isinstance(data, dict) else None
    ids = platinum.get("ids") if isinstance(platinum, dict) else None
    return {str(i) for i in ids} if isinstance(ids, list) else None


def _tombstones(datasets: Path) -> dict[str, int]:
    """The examples that the ledger's tombstones name, with their sequences where stubs still show them; 0 else."""
    from hivemind.servers.arbiter.chain import segments_of

    found: dict[str, int] = {}
    for file in segments_of(datasets):
        with file.open("rb") as lines:
            for line in lines:
                if b'"role":"tombstone"' in line or b'"role":"forgotten"' in line:
                    _take(line.rstrip(b"\n"), found)
    return found


def _take(line: bytes, found: dict[str, int]) -> None:
    from hivemind.servers.arbiter.lines import BadLine, Stub, Tombstone, parse

    try:
        held, _ = parse(line)
    except BadLine:
        return  # `hivemind platinum verify` tells of it
    if isinstance(held, Stub):
        found[held.id] = held.sequence
    elif isinstance(held, Tombstone):
        for name in held.ids:
            found.setdefault(name, 0)
