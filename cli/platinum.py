"""`hivemind platinum`: what was learnt from, and why. `export` and `verify` read the files and need no running mesh."""

import difflib
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlencode

from hivemind.cli.home import CommandError
from hivemind.cli.http_api import MeshApi

if TYPE_CHECKING:
    from rich.console import Console

    from hivemind.servers.arbiter.chain import Verdict

_PAGE: Final = 500
_SHOWN: Final = 60


def examples(api: MeshApi, *, count: int, tenant: str, domain: str) -> dict[str, Any]:
    """The newest examples, as /api/platinum gives them."""
    found: list[Any] = []
    token = ""
    while len(found) < count:
        asked = {"page_size": min(_PAGE, count - len(found)), "page_token": token, "tenant": tenant, "domain": domain}
        page = api.get("/api/platinum?" + urlencode({k: v for k, v in asked.items() if v}))
        found += page["examples"]
        token = page["next_page_token"]
        if not token:
            break
    return {"examples": found}


def example(api: MeshApi, name: str) -> dict[str, Any]:
    """One example."""
    found: dict[str, Any] = api.get(f"/api/platinum/{quote(name, safe='')}")
    return found


def forget(api: MeshApi, *, tenant: str, request: str, name: str, reason: str, rotate: bool) -> dict[str, Any]:
    """Forgets; CommandError unless exactly one thing is named."""
    if sum(map(bool, (tenant, request, name))) != 1:
        raise CommandError("name exactly one of --tenant, --request and --id")
    body = {"tenant": tenant, "request_id": request, "id": name, "reason": reason, "rotate": rotate}
    found: dict[str, Any] = api.post("/api/platinum:forget", {k: v for k, v in body.items() if v})
    return found


def export(folder: Path, out: IO[bytes], *, tenant: str, domain: str) -> int:
    """Writes the lines of all examples that can be learnt from; answers how many."""
    from hivemind.servers.arbiter.chain import examples_of

    count = 0
    for line, found in examples_of(_there(folder)):
        if tenant in ("", found.new.tenant) and domain in ("", found.new.domain):
            out.write(line + b"\n")
            count += 1
    return count


def export_to(folder: Path, file: str, *, tenant: str, domain: str) -> int:
    """`export` into a file, or to standard output where none is named."""
    if not file:
        return export(folder, sys.stdout.buffer, tenant=tenant, domain=domain)
    try:
        with open(file, "wb") as out:
            return export(folder, out, tenant=tenant, domain=domain)
    except OSError as error:
        raise CommandError(f"{file} cannot be written ({error.strerror})") from error


def verified(folder: Path) -> "Verdict":
    """What a look at every line finds; CommandError where there is no ledger."""
    from hivemind.servers.arbiter.chain import verify

    try:
        return verify(_there(folder))
    except OSError as error:
        raise CommandError(f"{error.filename or folder} cannot be read ({error.strerror})") from error


def verdict_json(verdict: "Verdict") -> dict[str, Any]:
    """What was found, for --json."""
    return {**asdict(verdict), "holds": verdict.holds}


def show_verdict(console: "Console", verdict: "Verdict") -> None:
    """Prints each wrong line, then the sum."""
    for p in verdict.problems:
        where = f"{p.file}:{p.line}" if p.line else p.file
        number = f" (sequence {p.sequence})" if p.sequence else ""
        console.print(f"{where}{number}: {p.problem}", style="red", highlight=False, markup=False)
    if verdict.torn:
        console.print(f"the last line has no end ({verdict.torn} bytes); nobody was told that it is stored")
    state = "the chain holds" if verdict.holds else f"{len(verdict.problems)} problems"
    console.print(
        f"{state}: {verdict.lines} lines in {verdict.files} files, {verdict.examples} examples, "
        f"{verdict.forgotten} forgotten; last sequence {verdict.last_sequence}, sha256 {verdict.last_sha256}",
        style="green" if verdict.holds else "bold red", highlight=False, soft_wrap=True,
    )  # fmt: skip


def show_list(console: "Console", data: dict[str, Any]) -> None:
    """Prints examples as a table."""
    from rich.markup import escape
    from rich.table import Table

    table = Table("sequence", "id", "when", "by", "domain", "tenant", "score", "answer", box=None)
    for e in data["examples"]:
        p = e["provenance"]
        score = f"{p['draft_score']:.2f} -> {p['score']:.2f}"
        answer = escape(_shortened(e["final_platinum_answer"]))
        row = (e["sequence"], e["id"], e["create_time"][:19], e["refined_by"], e["domain"], e["tenant"], score, answer)
        table.add_row(*map(str, row))
    console.print(table)


def show_example(console: "Console", data: dict[str, Any]) -> None:
    """Prints an example: the conversation, draft against final, and who decided and why."""
    from rich.text import Text

    p = data["provenance"]
    for message in data["messages"]:
        console.print(Text(f"{message['role']}: ", "bold") + Text(message["content"], ""))
    console.print()
    drafter = " ".join(filter(None, (p["draft_model"], p["draft_adapter"]))) or "unknown"
    console.print(Text(f"--- draft ({drafter}, score {p['draft_score']:.2f})", "red"))
    console.print(Text(f"+++ final ({_refiner(data)}, score {p['score']:.2f})", "green"))
    console.print(coloured_diff(data["draft"], data["final_platinum_answer"]))
    console.print()
    for number, decision in enumerate(p["decisions"], 1):
        console.print(Text(f"{number}. {decision}"))
    for label, value in _facts(data, p):
        console.print(Text(f"{label:<12}", "dim") + Text(value))


def coloured_diff(before: str, after: str) -> Any:
    """Both texts as one: what went is red and struck out, what came is green."""
    from rich.text import Text

    old, new = list(_words(before)), list(_words(after))
    text = Text()
    for tag, a, b, c, d in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if tag == "equal":
            text.append("".join(old[a:b]))
            continue
        text.append("".join(old[a:b]), "red strike")
        text.append("".join(new[c:d]), "green")
    return text


def show_stats(console: "Console", data: dict[str, Any]) -> None:
    """Prints the counts."""
    from rich.table import Table

    table = Table("what", "count", box=None)
    for name in ("examples", "forgotten", "last_sequence", "bad_lines", "queued", "dropped", "size_bytes"):
        table.add_row(name.replace("_", " "), str(data[name]))
    table.add_row("cost, USD", f"{int(data['cost_micros']) / 1e6:.6f}")
    for kind in ("by_refined_by", "by_domain", "by_tenant"):
        for name, count in sorted(data.get(kind, {}).items(), key=lambda pair: -int(pair[1])):
            table.add_row(f"{kind[3:].replace('_', ' ')} {name or '(none)'}", str(count))
    console.print(table)


def show_forgotten(console: "Console", data: dict[str, Any]) -> None:
    """Prints what was forgotten."""
    for name in data["ids"]:
        console.print(name, highlight=False)
    console.print(f"{len(data['ids'])} forgotten", style="dim", highlight=False)


def _there(folder: Path) -> Path:
    from hivemind.servers.arbiter.chain import folder_is_there

    if not folder_is_there(folder):
        raise CommandError(f"no ledger in {folder}; name its folder by --folder or HIVEMIND_DATASETS")
    return folder


def _refiner(data: dict[str, Any]) -> str:
    p = data["provenance"]
    model = {"ORACLE": p["oracle_model"], "ARBITER": p["arbiter_model"]}.get(data["refined_by"], "")
    return " ".join(filter(None, (data["refined_by"], model)))


def _facts(data: dict[str, Any], p: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "changes", p["changes"]
    yield "safety", p["safety"]
    yield "confidence", f"{data['confidence']:.2f}"
    yield "cost", f"{int(p['cost_micros']) / 1e6:.6f} USD, {p.get('latency') or '0s'}"
    yield "origin", f"{data['origin']}, licence {data['licence']}, consent {data['consent']}"
    yield "redactions", str(p["redactions"])
    yield "request", data["request_id"]
    yield "example", f"{data['id']}, sequence {data['sequence']}, {data['create_time']}"
    yield "sha256", data["sha256"]


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else line[: _SHOWN - 1] + "…"


def _words(text: str) -> Iterator[str]:
    import re

    return (m[0] for m in re.finditer(r"\s+|\w+|[^\w\s]", text))
