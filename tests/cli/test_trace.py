"""hivemind trace: the stations of an example, and what is said where the records end."""

import io
from typing import Any

from rich.console import Console

from hivemind.cli.home import CommandError
from hivemind.cli.trace import show_trace, trace

EXAMPLE = {
    "id": "e1", "sequence": "5", "request_id": "r1", "refined_by": "ORACLE", "create_time": "2026-11-24T10:00:05Z",
    "provenance": {"draft_model": "courier", "draft_adapter": "", "draft_score": 0.2, "score": 0.9},
}  # fmt: skip


def adapter(name: str, first: int, last: int, time: str) -> dict[str, Any]:
    return {
        "id": name,
        "first_sequence": str(first),
        "last_sequence": str(last),
        "state": "CHAMPION",
        "create_time": time,
    }


def record(name: str, time: str, adapter_id: str = "", error: str = "") -> dict[str, Any]:
    decision = {"strategy": "single", "chosen_model": "courier", "domain": "facts"}
    calls = [{"adapter": adapter_id, "error": error}]
    nomination = "SAMPLE" if name == "r1" else ""
    return {
        "request_id": name, "create_time": time, "decision": decision, "calls": calls, "outcome": "OK",
        "nomination": nomination,
    }  # fmt: skip


class Api:
    """Answers as the mesh would."""

    def __init__(
        self,
        requests: list[dict[str, Any]],
        adapters: list[dict[str, Any]],
        *,
        kept: bool = True,
        learnt: int | None = 9,
    ) -> None:
        self.requests, self.adapters, self.kept, self.learnt = requests, adapters, kept, learnt

    def get(self, path: str) -> Any:
        if path == "/api/platinum/e1":
            return EXAMPLE
        if path == "/api/requests/r1":
            if not self.kept:
                raise CommandError("the mesh answered 404")
            return record("r1", "2026-11-24T10:00:00Z")
        if path == "/api/learner":
            if self.learnt is None:
                raise CommandError("the Trainer does not answer")
            return {"last_sequence": str(self.learnt), "waiting": "2", "published": "3", "state": "WAITING"}
        if path.startswith("/api/adapters?"):
            return {"adapters": self.adapters, "next_page_token": ""}
        begin = int(path.rpartition("page_token=")[2] or 0)
        rest = len(self.requests) > begin + 2
        return {"requests": self.requests[begin : begin + 2], "next_page_token": str(begin + 2) if rest else ""}


NEW = "implementer-v000002"
ADAPTERS = [adapter(NEW, 1, 9, "2026-11-24T10:05:00Z"), adapter("implementer-v000001", 1, 4, "2026-11-24T09:00:00Z")]


def test_the_answers_before_which_the_courier_was_shown_it_are_told() -> None:
    with_it = [record(name, f"2026-11-24T10:0{name[1]}:00Z") for name in ("r9", "r8", "r7")]
    for seen in (with_it[0], with_it[2]):
        seen["calls"][0]["example_ids"] = ["e0", "e1"]

    found = trace(Api(with_it, []), "e1")  # type: ignore[arg-type]

    assert [seen["request_id"] for seen in found["shown"]] == ["r7", "r9"]
    assert "r7: the courier was shown it, and before 1 later answers" in shown(found)


def shown(data: dict[str, Any]) -> str:
    console = Console(file=io.StringIO(), width=160)
    show_trace(console, data)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_way_goes_from_the_request_to_the_first_answer_of_an_adapter_that_learnt_it() -> None:
    requests = [
        record("r9", "2026-11-24T10:09:00Z", NEW),
        record("r8", "2026-11-24T10:08:00Z", NEW),
        record("r7", "2026-11-24T10:07:00Z", NEW, error="UPSTREAM_FAILED"),
        record("r6", "2026-11-24T10:06:00Z", "implementer-v000001"),
        record("r1", "2026-11-24T10:00:00Z"),
    ]

    found = trace(Api(requests, ADAPTERS), "e1")  # type: ignore[arg-type]

    assert found["request"]["request_id"] == "r1"
    assert [a["id"] for a in found["adapters"]] == [NEW]
    assert found["first_answer"]["request_id"] == "r8"
    assert found["missing"] == []
    lines = shown(found).splitlines()
    assert [line[21:30].strip() for line in lines] == [
        "request", "nominated", "example", "learner", "adapter", "answer",
    ]  # fmt: skip
    assert "score 0.20 -> 0.90" in lines[2]


def test_what_is_not_known_is_said() -> None:
    early = trace(Api([], [], learnt=4), "e1")  # type: ignore[arg-type]
    alone = trace(Api([], [], learnt=None), "e1")  # type: ignore[arg-type]
    late = trace(Api([record("r9", "2026-11-24T10:09:00Z")], ADAPTERS, kept=False), "e1")  # type: ignore[arg-type]

    assert early["missing"] == ["no adapter has learnt it yet"]
    assert "has learnt up to sequence 4; 2 examples wait" in shown(early)
    assert alone["missing"][0] == "where the online learner stands: the Trainer does not answer"
    assert late["request"] is None
    assert late["missing"][0] == "the record of request r1 is no longer kept"
    assert late["missing"][1].startswith("no request that is still kept")
    assert "not known: no adapter has learnt it yet" in shown(early)
