"""The commands that talk to a running mesh, and `doctor` and `logs`, which need none."""

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hivemind.cli import doctor
from hivemind.cli.home import CommandError, read_json
from hivemind.cli.http_api import MeshApi


def ask(api: MeshApi, console: Console, question: str, *, model: str, max_tokens: int) -> None:
    """Prints an answer as it is written, then who gave it and what it cost."""
    body = {"model": model, "messages": [{"role": "user", "content": question}], "stream": True}
    if max_tokens:
        body["max_tokens"] = max_tokens
    began, first = time.monotonic(), 0.0
    about: dict[str, Any] = {}
    for event in api.events("/v1/chat/completions", body):
        about = event.get("hivemind") or about
        for choice in event.get("choices", []):
            text = choice.get("delta", {}).get("content")
            if text:
                first = first or time.monotonic() - began
                console.file.write(text)
                console.file.flush()
    console.print()
    cost = int(about.get("cost_micros", 0)) / 1e6
    line = f"{about.get('model')} ({about.get('chosen_model')}, {about.get('strategy')}), {cost:.6f} USD"
    console.print(
        f"{line}, {time.monotonic() - began:.2f} s, first token after {first:.2f} s", style="dim", highlight=False
    )
    for missing in about.get("degraded", []):
        console.print(f"degraded: {missing}", style="yellow", highlight=False)


def status(home: Path, api: MeshApi) -> dict[str, Any]:
    """Health of each part, and today's spend and savings."""
    mesh = read_json(home / "run" / "mesh.json")
    if not isinstance(mesh, dict):
        raise CommandError(f"no mesh runs on {home}; start it with `hivemind up`")
    parts = {name: _ready(mesh["host"], ports["metrics"]) for name, ports in mesh["processes"].items()}
    parts["envoy"] = _ready(mesh["host"], mesh["port"])
    spend = api.get("/api/spend")
    return {
        "address": f"http://{mesh['host']}:{mesh['port']}",
        "parts": parts,
        "spent_today_micros": int(spend["total_micros"]),
        "saved_today_micros": int(spend["saved_micros"]),
        "requests_today": sum(int(row["requests"]) for row in spend["rows"]),
    }


def show_status(console: Console, data: dict[str, Any]) -> None:
    """Prints what `status` found."""
    table = Table("part", "state", "detail", box=None)
    for name, (ready, detail) in data["parts"].items():
        table.add_row(name, "[green]ready[/]" if ready else "[red]not ready[/]", detail)
    console.print(table)
    spent, saved = data["spent_today_micros"] / 1e6, data["saved_today_micros"] / 1e6
    console.print(
        f"{data['address']}: {data['requests_today']} requests today, {spent:.4f} USD spent, "
        f"{saved:.4f} USD saved against sending all to master",
        highlight=False,
    )


def show_models(console: Console, data: dict[str, Any]) -> None:
    """Prints /api/models."""
    table = Table("model", "health", "upstream", "USD per M in / out", "context", "note", box=None)
    for model in data["models"]:
        price = f"{int(model['input_price_micros']) / 1e6:g} / {int(model['output_price_micros']) / 1e6:g}"
        upstream = ", ".join(model["upstream_models"])
        table.add_row(
            model["id"], model["health"], upstream, price, str(model["context_tokens"]), escape(model["note"])
        )
    console.print(table)


def governor_body(settings: list[str]) -> dict[str, Any]:
    """The body of `governor set key=value ...`. `budget=TENANT:DAY:MICROS`, with `:REFINEMENT` for
    that purpose, and `rate=TENANT:PER_MINUTE` may repeat."""
    body: dict[str, Any] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise CommandError(f"{setting!r}: give key=value, such as enabled=false or budget=*:DAY:5000000")
        if name == "budget":
            body.setdefault("budgets", []).append(_budget(value))
        elif name == "rate":
            tenant, _, per_minute = value.rpartition(":")
            body.setdefault("rates", []).append({"tenant": tenant, "requests_per_minute": _number(per_minute)})
        else:
            body[name] = _value(value)
    return body


def show_governor(console: Console, data: dict[str, Any]) -> None:
    """Prints the configuration."""
    table = Table("setting", "value", box=None)
    for name, value in data.items():
        if name not in ("budgets", "rates", "changes"):
            table.add_row(name, str(value).lower() if isinstance(value, bool) else str(value))
    for b in data.get("budgets", []):
        table.add_row("budget", f"{b['tenant']} {b['period']} {b['purpose']}: {int(b['limit_micros']) / 1e6:g} USD")
    for r in data.get("rates", []):
        table.add_row("rate", f"{r['tenant']}: {r['requests_per_minute']} a minute")
    console.print(table)


def show_doctor(console: Console, parts: list[doctor.Part]) -> None:
    """Prints what is here and what is missing."""
    table = Table("part", "state", "detail", "would add", "get it by", box=None)
    for part in parts:
        here = "[green]here[/]" if part.present else "[red]missing[/]" if part.needed else "[yellow]absent[/]"
        adds, get = ("", "") if part.present else (part.adds, part.get)
        table.add_row(part.name, here, escape(part.detail), escape(adds), escape(get))
    console.print(table)


def show_logs(console: Console, home: Path, name: str, *, lines: int, follow: bool) -> None:
    """Prints the last lines of the logs, of one process or of all, and goes on with `follow`."""
    files = sorted((home / "logs").glob(f"{name or '*'}.log"))
    if not files:
        raise CommandError(f"no log of {name or 'a mesh'} below {home / 'logs'}")
    found = [(file, line) for file in files for line in file.read_text(errors="replace").splitlines()[-lines:]]
    for file, line in sorted(found, key=lambda pair: _time_of(pair[1]))[-lines:]:
        console.print(_pretty(file.stem, line), markup=False, highlight=False, soft_wrap=True)
    if follow:
        for file, line in _new_lines(files):
            console.print(_pretty(file.stem, line), markup=False, highlight=False, soft_wrap=True)


def _new_lines(files: list[Path]) -> Iterator[tuple[Path, str]]:
    handles = [(file, file.open(errors="replace")) for file in files]
    for _, handle in handles:
        handle.seek(0, 2)
    while True:
        for file, handle in handles:
            for line in handle:
                yield file, line.rstrip("\n")
        time.sleep(0.2)


def _pretty(name: str, line: str) -> str:
    try:
        entry = json.loads(line)
    except ValueError:
        return f"{name:<17} {line}"
    if not isinstance(entry, dict):
        return f"{name:<17} {line}"
    stamp = str(entry.pop("timestamp", entry.pop("time", "")))[11:23]
    head = f"{stamp} {entry.pop('server', name):<17} {entry.pop('level', ''):<7} {entry.pop('event', '')}"
    return head + "".join(f" {k}={v}" for k, v in entry.items())


def _time_of(line: str) -> str:
    try:
        entry = json.loads(line)
        return str(entry.get("timestamp") or entry.get("time") or "")
    except (ValueError, AttributeError):
        return datetime.fromtimestamp(0, UTC).isoformat()


def _ready(host: str, port: int) -> tuple[bool, str]:
    import http.client

    connection = http.client.HTTPConnection(host, port, timeout=2)
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        return answer.status == 200, str(json.loads(answer.read()).get("detail", ""))
    except (OSError, ValueError, http.client.HTTPException) as error:
        return False, str(error)
    finally:
        connection.close()


def _budget(value: str) -> dict[str, Any]:
    parts = value.split(":")
    if len(parts) not in (3, 4):
        raise CommandError(f"budget={value}: give TENANT:DAY:MICROS or TENANT:MONTH:MICROS:REFINEMENT")
    purpose = {"purpose": parts[3].upper()} if len(parts) == 4 else {}
    return {"tenant": parts[0], "period": parts[1].upper(), "limit_micros": _number(parts[2]), **purpose}


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise CommandError(f"{text!r} is not a whole number") from None


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
