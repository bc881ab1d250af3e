"""The `hivemind` command. Every command imports what it needs when it runs, so that --help answers at once."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="A self-improving model gateway.", rich_markup_mode=None
)
governor = typer.Typer(no_args_is_help=True, help="Toggles and budgets of the running mesh.", rich_markup_mode=None)
app.add_typer(governor, name="governor")

router = typer.Typer(no_args_is_help=True, help="What routing achieved, and its records.", rich_markup_mode=None)
app.add_typer(router, name="router")

platinum_app = typer.Typer(no_args_is_help=True, help="Examples worth learning from.", rich_markup_mode=None)
app.add_typer(platinum_app, name="platinum")
adapter_commands = typer.Typer(
    no_args_is_help=True, help="Adapters, their traffic and evidence.", rich_markup_mode=None
)
app.add_typer(adapter_commands, name="adapters")
loop_commands = typer.Typer(no_args_is_help=True, help="The loop that learns in the background.", rich_markup_mode=None)
app.add_typer(loop_commands, name="orchestrator")

train_commands = typer.Typer(no_args_is_help=True, help="Training jobs of the running mesh.", rich_markup_mode=None)
app.add_typer(train_commands, name="train")

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def main() -> None:
    """Entry point of the `hivemind` command."""
    app()


@app.command("up")
def up_command(
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return when the first answer is possible.")] = False,
    port: Annotated[int, typer.Option(help="Envoy's port; 0 for any free one.", envvar="HIVEMIND_PORT")] = 8080,
    replicas: Annotated[str, typer.Option(help="Such as router=2.", envvar="HIVEMIND_REPLICAS")] = "",
) -> None:
    """Start the mesh."""
    with _errors():
        from hivemind.cli import mesh
        from hivemind.cli import up as starting

        counts = mesh.parse_replicas(replicas)
        home, config = _folders()
        if detach:
            arguments = ["--port", str(port), *(["--replicas", replicas] if replicas else [])]
            starting.up_detached(home=home, arguments=arguments, say=_say)
        else:
            starting.up(home=home, config=config, port=port, replicas=counts, say=_say)


@app.command("down")
def down_command() -> None:
    """End the mesh."""
    with _errors():
        from hivemind.cli import up as starting

        starting.down(home=_folders()[0], say=_say)


@app.command("status")
def status_command(as_json: Json = False) -> None:
    """Show the health of each part, spend and savings."""
    with _errors():
        from hivemind.cli import commands

        _print(commands.status(_folders()[0], _api()), commands.show_status, as_json)


@app.command("ask")
def ask_command(
    question: str,
    model: Annotated[str, typer.Option(help="auto, an alias, or alias:adapter.")] = "auto",
    max_tokens: Annotated[int, typer.Option(help="Most tokens to write; 0: the model's own limit.")] = 0,
) -> None:
    """Ask a question and print the answer as it comes."""
    with _errors():
        from rich.console import Console

        from hivemind.cli import commands

        commands.ask(_api(), Console(), question, model=model, max_tokens=max_tokens)


@app.command("models")
def models_command(as_json: Json = False) -> None:
    """List what can be asked for by name."""
    with _errors():
        from hivemind.cli import commands

        _print(_api().get("/api/models"), commands.show_models, as_json)


@governor.command("get")
def governor_get(as_json: Json = False) -> None:
    """Show the configuration."""
    with _errors():
        from hivemind.cli import commands

        _print(_api().get("/api/config/governor"), commands.show_governor, as_json)


@governor.command("set")
def governor_set(settings: Annotated[list[str], typer.Argument(help="key=value")], as_json: Json = False) -> None:
    """Change it: enabled=false quality_dial=0.8 budget=TENANT:DAY:MICROS[:REFINEMENT]
    rate=TENANT:PER_MINUTE."""
    with _errors():
        from hivemind.cli import commands

        answer = _api().post("/api/config/governor", commands.governor_body(settings))
        _print(answer, commands.show_governor, as_json)


@router.command("report")
def router_report_command(
    png: Annotated[str, typer.Option(help="Also draw the calibration curve into this file.")] = "",
    as_json: Json = False,
) -> None:
    """Show savings, reliability of the estimates, and regret estimated from exploration."""
    with _errors():
        from pathlib import Path

        from hivemind.cli import router_report as reporting

        found = reporting.report(reporting.records(_api()))
        if as_json:
            _print(reporting.as_json(found), _nothing, True)
        else:
            _print(found, reporting.show, False)
        if png:
            reporting.draw(found, Path(png))


Tenant = Annotated[str, typer.Option(help="Only this tenant.")]
Domain = Annotated[str, typer.Option(help="Only this domain.")]
Folder = Annotated[str, typer.Option(help="The ledger's folder; empty: that of this mesh.")]


@platinum_app.command("list")
def platinum_list(
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="How many of the newest.")] = 20,
    tenant: Tenant = "",
    domain: Domain = "",
    as_json: Json = False,
) -> None:
    """List the newest examples."""
    with _errors():
        from hivemind.cli import platinum as examples

        _print(examples.examples(_api(), count=count, tenant=tenant, domain=domain), examples.show_list, as_json)


@platinum_app.command("show")
def platinum_show(name: Annotated[str, typer.Argument(metavar="ID")], as_json: Json = False) -> None:
    """Show draft against final answer, who decided and why."""
    with _errors():
        from hivemind.cli import platinum as examples

        _print(examples.example(_api(), name), examples.show_example, as_json)


@platinum_app.command("export")
def platinum_export(
    out: Annotated[str, typer.Option("--out", "-o", help="The file to write; empty: standard output.")] = "",
    tenant: Tenant = "",
    domain: Domain = "",
    folder: Folder = "",
) -> None:
    """Write all examples that can be learnt from as JSON lines; reads the files, needs no running mesh."""
    with _errors():
        from hivemind.cli import platinum as examples

        count = examples.export_to(_datasets(folder), out, tenant=tenant, domain=domain)
        print(f"{count} examples", file=sys.stderr)


@platinum_app.command("verify")
def platinum_verify(folder: Folder = "", as_json: Json = False) -> None:
    """Check that no line was changed, taken out or moved; reads the files, needs no running mesh."""
    with _errors():
        from hivemind.cli import platinum as examples

        verdict = examples.verified(_datasets(folder))
        if as_json:
            _print(examples.verdict_json(verdict), _nothing, True)
        else:
            _print(verdict, examples.show_verdict, False)
        if not verdict.holds:
            raise typer.Exit(1)


@platinum_app.command("stats")
def platinum_stats(as_json: Json = False) -> None:
    """Count examples, and what waits for refinement."""
    with _errors():
        from hivemind.cli import platinum as examples

        _print(_api().get("/api/platinum:stats"), examples.show_stats, as_json)


@platinum_app.command("forget")
def platinum_forget(
    tenant: Annotated[str, typer.Option(help="Everything of this tenant.")] = "",
    request: Annotated[str, typer.Option(help="Everything that came of this request.")] = "",
    name: Annotated[str, typer.Option("--id", help="This example.")] = "",
    reason: Annotated[str, typer.Option(help="Why; the ledger keeps it.")] = "",
    rotate: Annotated[bool, typer.Option("--rotate", help="Take the texts off the disk at once.")] = False,
    as_json: Json = False,
) -> None:
    """Forget examples: never listed or streamed again; the texts leave the disk with the next rotation."""
    with _errors():
        from hivemind.cli import platinum as examples

        answer = examples.forget(_api(), tenant=tenant, request=request, name=name, reason=reason, rotate=rotate)
        _print(answer, examples.show_forgotten, as_json)


@adapter_commands.command("list")
def adapters_list(role: Annotated[str, typer.Argument(help="Only this role.")] = "", as_json: Json = False) -> None:
    """List adapters, newest first."""
    with _errors():
        from hivemind.cli import adapters as registry

        _print(registry.adapters(_api(), role), registry.show_adapters, as_json)


@adapter_commands.command("state")
def adapters_state(as_json: Json = False) -> None:
    """Show champion, challengers, evidence and replicas of each role."""
    with _errors():
        from hivemind.cli import adapters as registry

        _print(registry.state(_api()), registry.show_state, as_json)


@adapter_commands.command("register")
def adapters_register(
    role: str,
    path: Annotated[str, typer.Argument(help="A folder under HIVEMIND_HOME or the adapters' folder.")],
    parent: Annotated[str, typer.Option(help="The adapter it was trained from.")] = "",
    as_json: Json = False,
) -> None:
    """Check a PEFT directory and store it as the next version."""
    with _errors():
        from hivemind.cli import adapters as registry

        found = registry.register(_api(), role, path, parent)
        _print(found, lambda console, a: registry.show_adapters(console, {"adapters": [a]}), as_json)


@adapter_commands.command("export")
def adapters_export(
    adapter: str,
    out: Annotated[str, typer.Option("--out", "-o", help="The folder, or the file, to write.")],
    gguf: Annotated[bool, typer.Option("--gguf", help="One file for llama.cpp instead of a PEFT folder.")] = False,
) -> None:
    """Write a version's files: its PEFT folder, or one GGUF file."""
    with _errors():
        from pathlib import Path

        from hivemind.cli import adapter_export as exporting
        from hivemind.cli.home import data_folder

        print(exporting.export(_api(), data_folder("adapters", os.environ), adapter, Path(out), gguf=gguf))


@adapter_commands.command("traffic")
def adapters_traffic(
    role: str,
    adapter: str,
    share: Annotated[str, typer.Argument(help="10%, 0.1, shadow, next (1, 5, 10, 25, 50%) or 0.")],
    as_json: Json = False,
) -> None:
    """Set a challenger's share of the traffic."""
    with _errors():
        from hivemind.cli import adapters as registry

        _print(registry.set_traffic(_api(), role, adapter, share), registry.show_role, as_json)


@adapter_commands.command("preview")
def adapters_preview(
    role: str,
    adapter: Annotated[str, typer.Argument(help="Empty: the newest that is not champion.")] = "",
    as_json: Json = False,
) -> None:
    """Say what promoting would do. Changes nothing."""
    with _errors():
        from hivemind.cli import adapters as registry

        _print(registry.preview(_api(), role, adapter), registry.show_preview, as_json)


@adapter_commands.command("promote")
def adapters_promote(
    role: str,
    adapter: Annotated[str, typer.Argument(help="Empty: the newest challenger.")] = "",
    override: Annotated[bool, typer.Option("--override", help="Without evidence; needs --reason.")] = False,
    reason: Annotated[str, typer.Option(help="Why; the history keeps it.")] = "",
    as_json: Json = False,
) -> None:
    """Make an adapter champion, by the evidence of this moment."""
    with _errors():
        from hivemind.cli import adapters as registry

        found = registry.promote(_api(), role, adapter, override=override, reason=reason)
        _print(found, registry.show_role, as_json)


@adapter_commands.command("rollback")
def adapters_rollback(
    role: str,
    reason: Annotated[str, typer.Option(help="Why; the history keeps it.")] = "",
    as_json: Json = False,
) -> None:
    """Make the champion before champion again, without one the base model."""
    with _errors():
        from hivemind.cli import adapters as registry

        _print(registry.rollback(_api(), role, reason), registry.show_role, as_json)


@adapter_commands.command("history")
def adapters_history(
    role: str,
    adapter: Annotated[str, typer.Argument(help="Whose evidence to draw; empty: the newest challenger's.")] = "",
    png: Annotated[str, typer.Option(help="Also draw the chart into this file.")] = "",
    as_json: Json = False,
) -> None:
    """Show what happened, and a chart of how the evidence grew."""
    with _errors():
        from pathlib import Path

        from hivemind.cli import adapters as registry

        found = registry.history(_api(), role, adapter)
        _print(found, registry.show_history, as_json)
        if png:
            registry.draw(found, Path(png))


@loop_commands.command("status")
def orchestrator_status(as_json: Json = False) -> None:
    """Show who leads, and the last cycle."""
    with _errors():
        from hivemind.cli import orchestrator as loop

        _print(loop.status(_api()), loop.show_status, as_json)


@loop_commands.command("pause")
def orchestrator_pause(
    reason: Annotated[str, typer.Option(help="Why; the status shows it.")] = "", as_json: Json = False
) -> None:
    """Pause the loop on all replicas, within a second."""
    with _errors():
        from hivemind.cli import orchestrator as loop

        _print(loop.pause(_api(), reason), loop.show_status, as_json)


@loop_commands.command("resume")
def orchestrator_resume(as_json: Json = False) -> None:
    """Let the loop go on."""
    with _errors():
        from hivemind.cli import orchestrator as loop

        _print(loop.resume(_api()), loop.show_status, as_json)


@loop_commands.command("cycle")
def orchestrator_cycle(
    steps: Annotated[list[str] | None, typer.Argument(help="Only these steps, such as platinum map.")] = None,
    as_json: Json = False,
) -> None:
    """Run a cycle now, and show what it did."""
    with _errors():
        from hivemind.cli import orchestrator as loop

        _print(loop.run_cycle(_api(), steps or []), loop.show_cycle, as_json)


@loop_commands.command("history")
def orchestrator_history(
    count: Annotated[int, typer.Option("--count", "-n", min=1, max=500, help="How many of the newest.")] = 20,
    as_json: Json = False,
) -> None:
    """List the latest cycles."""
    with _errors():
        from hivemind.cli import orchestrator as loop

        _print(loop.history(_api(), count), loop.show_history, as_json)


@app.command("skills")
def skills_command(
    png: Annotated[str, typer.Option(help="Also draw the bars into this file.")] = "", as_json: Json = False
) -> None:
    """Show what the mesh is good at, by domain."""
    with _errors():
        from pathlib import Path

        from hivemind.cli import orchestrator as loop

        found = loop.skills(_api())
        _print(found, loop.show_skills, as_json)
        if png:
            loop.draw_skills(found, Path(png))


@app.command("trace")
def trace_command(name: Annotated[str, typer.Argument(metavar="ID")], as_json: Json = False) -> None:
    """Follow a platinum example from its request to the first answer of an adapter that has learnt it."""
    with _errors():
        from hivemind.cli import trace as tracing

        _print(tracing.trace(_api(), name), tracing.show_trace, as_json)


@router.command("export")
def router_export_command(
    file: Annotated[str, typer.Argument(help="The file to write, a line of JSON for each request.")],
    tenant: Annotated[str, typer.Option(help="Only the requests of this tenant.")] = "",
) -> None:
    """Write all records, each with the feedback on it, newest first."""
    with _errors():
        from pathlib import Path

        from hivemind.cli import router_export as exporting

        count = exporting.export(_api(), Path(file), tenant=tenant)
        _say(f"{count} records in {file}")


JobId = Annotated[str, typer.Argument(metavar="JOB")]


@train_commands.command("start")
def train_start(
    role: Annotated[str, typer.Option(help="The adapter role; empty: implementer.")] = "",
    data: Annotated[list[str] | None, typer.Option(help="A file or folder in the state folder; may repeat.")] = None,
    platinum: Annotated[bool, typer.Option("--platinum", help="Learn from the platinum ledger.")] = False,
    mixture: Annotated[str, typer.Option(help="A mixture of public sets, such as default.")] = "",
    base: Annotated[str, typer.Option(help="The base model; empty: that of the role.")] = "",
    max_steps: Annotated[int | None, typer.Option(help="Optimizer steps at most.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the data.")] = None,
    learning_rate: Annotated[float | None, typer.Option()] = None,
    rank: Annotated[int | None, typer.Option(help="Rank of the adapter.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Samples of one step.")] = None,
    max_seq_length: Annotated[int | None, typer.Option(help="Tokens of a sample at most.")] = None,
    seed: Annotated[int | None, typer.Option()] = None,
    backend: Annotated[str, typer.Option(help="unsloth or cpu; empty: what the machine can run.")] = "",
    max_minutes: Annotated[float, typer.Option(help="Time at most; 0: no limit.")] = 0.0,
    max_cost: Annotated[float, typer.Option(help="USD at most; 0: no limit.")] = 0.0,
    key: Annotated[str, typer.Option(help="An idempotency key: the same one twice has one effect.")] = "",
    follow: Annotated[bool, typer.Option("--watch", help="Show the progress to the end.")] = False,
    as_json: Json = False,
) -> None:
    """Queue a job; without any data named it learns from platinum and the default mixture."""
    with _errors():
        from hivemind.cli import train as training

        recipe = {
            "max_steps": max_steps, "epochs": epochs, "learning_rate": learning_rate, "rank": rank,
            "batch_size": batch_size, "max_seq_length": max_seq_length, "seed": seed, "backend": backend,
        }  # fmt: skip
        wish = training.Wish(role, data or [], platinum, mixture, base, recipe, max_minutes, max_cost, key)
        job = _api().post("/api/train", training.order_of(wish, _folders()[0]))["job"]
        _print(_watched(job["id"], as_json) if follow else job, training.show_job, as_json)


@train_commands.command("list")
def train_list(as_json: Json = False) -> None:
    """List jobs, newest first."""
    with _errors():
        from hivemind.cli import train as training

        _print(list(training.jobs(_api())), training.show_jobs, as_json)


@train_commands.command("watch")
def train_watch(job: JobId, as_json: Json = False) -> None:
    """Show the progress of a job until it ends; ends with 1 if it failed or was cancelled."""
    with _errors():
        from hivemind.cli import train as training

        _print(_watched(job, as_json), training.show_job, as_json)


@train_commands.command("cancel")
def train_cancel(job: JobId, as_json: Json = False) -> None:
    """End a job after it has written a checkpoint."""
    with _errors():
        from hivemind.cli import train as training

        _print(_api().post(f"/api/train/{job}:cancel", {}), training.show_job, as_json)


@train_commands.command("learner")
def train_learner(
    what: Annotated[str, typer.Argument(help="Nothing, to look; or pause, resume, drain.")] = "",
    role: Annotated[str, typer.Option(help="The adapter role.")] = "implementer",
    reason: Annotated[str, typer.Option(help="Why it is paused.")] = "",
    as_json: Json = False,
) -> None:
    """Show the online learner, or have it pause, go on, or learn what waits at once."""
    with _errors():
        from hivemind.cli import train as training

        _print(training.learner(_api(), what, role, reason), training.show_learner, as_json)


@train_commands.command("forgotten")
def train_forgotten(folder: Folder = "", as_json: Json = False) -> None:
    """List the adapters that were trained on an example that was forgotten since."""
    with _errors():
        from hivemind.cli import train as training

        found = training.forgotten(_folders()[0], _datasets(folder), training.jobs(_api()))
        _print(found, training.show_forgotten, as_json)


@app.command(
    "bootstrap",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)
def bootstrap_command(context: typer.Context) -> None:
    """Train the first adapter (champion_v1); --help says with what options. Needs no running mesh."""
    with _errors():
        from hivemind.cli import train as training

        training.bootstrap(context.args, _folders()[0])


@app.command("logs")
def logs_command(
    name: Annotated[str, typer.Argument(help="A process such as router; empty: all.")] = "",
    lines: Annotated[int, typer.Option("--lines", "-n")] = 100,
    follow: Annotated[bool, typer.Option("--follow", "-f")] = False,
) -> None:
    """Show the logs."""
    with _errors():
        from rich.console import Console

        from hivemind.cli import commands

        commands.show_logs(Console(), _folders()[0], name, lines=lines, follow=follow)


@app.command("doctor")
def doctor_command(as_json: Json = False) -> None:
    """Say what is here, what is missing, what that would add, and how to get it."""
    with _errors():
        from hivemind.cli import commands
        from hivemind.cli import doctor as examining

        parts = examining.examine(*_folders(), examining.environment())
        if as_json:
            _print([p.as_json() for p in parts], _nothing, True)
        else:
            _print(parts, commands.show_doctor, False)
        if any(p.needed and not p.present for p in parts):
            raise typer.Exit(1)


@contextmanager
def _errors() -> Iterator[None]:
    """One sentence on stderr and exit code 1, instead of a traceback."""
    from hivemind.cli.home import CommandError

    try:
        yield
    except CommandError as error:
        print(f"hivemind: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def _folders() -> tuple[Any, Any]:
    from hivemind.cli.home import config_file, home_folder

    return home_folder(os.environ), config_file(os.environ)


def _datasets(named: str) -> Any:
    from pathlib import Path

    from hivemind.cli.home import data_folder

    return Path(named) if named else data_folder("datasets", os.environ)


def _api() -> Any:
    from hivemind.cli.home import mesh_address
    from hivemind.cli.http_api import MeshApi

    return MeshApi(*mesh_address(_folders()[0], os.environ))


def _watched(job_id: str, quietly: bool) -> Any:
    """A job at its end; the progress goes to standard error."""
    from rich.console import Console

    from hivemind.cli import train as training

    return training.watch(_api(), Console(stderr=True, quiet=quietly), job_id)


def _say(line: str) -> None:
    print(line, flush=True)


def _nothing(_console: Any, _data: Any) -> None:
    return None


def _print(data: Any, show: Callable[[Any, Any], None], as_json: bool) -> None:
    if as_json:
        import json

        print(json.dumps(data, indent=1))
        return
    from rich.console import Console

    show(Console(), data)
