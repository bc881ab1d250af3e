"""The way of one platinum example: from its request over the online learner to the first answer of an adapter that has
learnt it, and the answers before which the courier was shown it."""

from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import quote, urlencode

from rich.console import Console
from rich.markup import escape

from hivemind.cli.home import CommandError
from hivemind.cli.http_api import MeshApi

_PAGE: Final = 500
_PAGES_MAX: Final = 20


def trace(api: MeshApi, name: str) -> dict[str, Any]:
    """Request, example, the requests before whose answers it was shown, the online learner, the adapters whose data
    covers it (requests and adapters oldest first), and the first request that one of them answered. What is not known
    is None, and `missing` says why."""
    example: dict[str, Any] = api.get(f"/api/platinum/{quote(name, safe='')}")
    missing: list[str] = []
    request = _request(api, example["request_id"], missing)
    learner = _learner(api, missing)
    adapters = _adapters(api, int(example["sequence"]))
    answer = _first_answer(api, adapters, missing)
    return {
        "request": request, "example": example, "shown": _shown(api, example), "learner": learner,
        "adapters": adapters, "first_answer": answer, "missing": missing,
    }  # fmt: skip


def show_trace(console: Console, data: dict[str, Any]) -> None:
    """Prints the way, a line a station."""
    for when, station, text in _stations(data):
        console.print(f"[dim]{when[:19]:<19}[/]  {station:<9} {escape(text)}", highlight=False)
    for text in data["missing"]:
        console.print(f"not known: {escape(text)}", style="yellow", highlight=False)


def _stations(data: dict[str, Any]) -> list[tuple[str, str, str]]:
    request, example, answer = data["request"], data["example"], data["first_answer"]
    found = []
    if request is not None:
        decision = request["decision"]
        text = f"{request['request_id']}: {decision['strategy']} by {decision['chosen_model']}, {decision['domain']}"
        found.append((request["create_time"], "request", text))
    why = _nominated(request, example)
    if why:
        found.append(("", "nominated", why))
    p = example["provenance"]
    drafter = " ".join(filter(None, (p["draft_model"], p["draft_adapter"]))) or "unknown"
    found.append(
        (
            example["create_time"], "example",
            f"{example['id']}, sequence {example['sequence']}: {example['refined_by']} made it of a draft of {drafter} "
            f"(score {p['draft_score']:.2f} -> {p['score']:.2f})",
        )
    )  # fmt: skip
    if data["learner"] is not None:
        found.append(("", "learner", _learnt(data["learner"], int(example["sequence"]))))
    if data["shown"]:
        first, *more = data["shown"]
        text = f"{first['request_id']}: the courier was shown it" + (
            f", and before {len(more)} later answers" if more else ""
        )
        found.append((first["create_time"], "shown", text))
    for a in data["adapters"]:
        text = f"{a['id']} learnt it ({a['first_sequence']} to {a['last_sequence']}), {a['state'].lower()}"
        found.append((a["create_time"], "adapter", text))
    if answer is not None:
        text = f"{answer['request_id']}: the first by {answer['adapter']}, {answer['outcome']}"
        found.append((answer["create_time"], "answer", text))
    return found


def _nominated(request: dict[str, Any] | None, example: dict[str, Any]) -> str:
    """Why the answer came to be refined, as far as its record or the example tells."""
    if example.get("origin") == "feedback":
        return "by a client, who gave the right answer"
    nomination = "" if request is None else request.get("nomination", "")
    return f"for refinement, as {nomination}" if nomination else ""


def _request(api: MeshApi, request_id: str, missing: list[str]) -> dict[str, Any] | None:
    if not request_id:
        missing.append("the example came of no request: it was handed in by itself")
        return None
    try:
        found: dict[str, Any] = api.get(f"/api/requests/{quote(request_id, safe='')}")
    except CommandError:
        missing.append(f"the record of request {request_id} is no longer kept")
        return None
    return found


def _learner(api: MeshApi, missing: list[str]) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = api.get("/api/learner")
    except CommandError as error:
        missing.append(f"where the online learner stands: {error}")
        return None
    return found


def _learnt(learner: dict[str, Any], sequence: int) -> str:
    upto = int(learner["last_sequence"])
    if upto < sequence:
        return f"has learnt up to sequence {upto}; {learner['waiting']} examples wait, {learner['state'].lower()}"
    return f"has learnt up to sequence {upto}, {learner['published']} published so far"


def _adapters(api: MeshApi, sequence: int) -> list[dict[str, Any]]:
    """Those whose data covers a sequence, oldest first."""
    found: list[dict[str, Any]] = []
    token = ""
    for _ in range(_PAGES_MAX):
        page = api.get(f"/api/adapters?{urlencode({'page_size': _PAGE, 'page_token': token})}")
        found += [a for a in page["adapters"] if int(a["first_sequence"]) <= sequence <= int(a["last_sequence"])]
        token = page["next_page_token"]
        if not token:
            break
    return list(reversed(found))


def _first_answer(api: MeshApi, adapters: list[dict[str, Any]], missing: list[str]) -> dict[str, Any] | None:
    if not adapters:
        missing.append("no adapter has learnt it yet")
        return None
    names, since = {a["id"] for a in adapters}, min(a["create_time"] for a in adapters)
    first: dict[str, Any] | None = None
    for record in _records(api, since):
        answered = _answered_by(record, names)
        if answered:
            first = {**record, "adapter": answered}
    if first is None:
        missing.append("no request that is still kept was answered by such an adapter")
    return first


def _shown(api: MeshApi, example: dict[str, Any]) -> list[dict[str, Any]]:
    """Id and time of the requests that it was shown before, oldest first."""
    found = [
        {"request_id": record["request_id"], "create_time": record["create_time"]}
        for record in _records(api, example["create_time"])
        if any(example["id"] in call.get("example_ids", ()) for call in record["calls"])
    ]
    return found[::-1]


def _records(api: MeshApi, since: str) -> Iterator[dict[str, Any]]:
    """The records that are still kept, newest first, down to the page with that time."""
    token = ""
    for _ in range(_PAGES_MAX):
        page = api.get(f"/api/requests?{urlencode({'page_size': _PAGE, 'page_token': token})}")
        yield from page["requests"]
        token = page["next_page_token"]
        if not token or page["requests"][-1]["create_time"] < since:
            break


def _answered_by(record: dict[str, Any], names: set[str]) -> str:
    return next((c["adapter"] for c in record["calls"] if c["adapter"] in names and not c["error"]), "")
