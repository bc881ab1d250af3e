"""hivemind train: the order that it makes, the progress that it shows, and what learnt from a forgotten example."""

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from hivemind.cli import train as training
from hivemind.cli.home import CommandError
from hivemind.servers.arbiter.example import Example
from hivemind.servers.arbiter.folder import LedgerFolder
from tests.arbiter.examples import example

PROGRESS = {"step": 3, "max_steps": 6, "loss": 1.25, "tokens_per_second": 200, "eta": "12.500s"}


class Api:
    """Stands for the mesh: answers the same to every call."""

    timeout_s = 1.0

    def __init__(self, lines: Sequence[dict[str, Any]] = (), pages: Sequence[dict[str, Any]] = ()) -> None:
        self._lines, self._pages, self.asked = lines, list(pages), []  # type: ignore[var-annotated]

    def lines(self, path: str) -> Iterator[dict[str, Any]]:
        self.asked.append(path)
        return iter(self._lines)

    def get(self, path: str) -> Any:
        self.asked.append(path)
        return self._pages.pop(0)


def wish(**changes: Any) -> training.Wish:
    fields: dict[str, Any] = {
        "role": "", "paths": (), "platinum": False, "mixture": "", "base_model": "", "recipe": {}, "max_minutes": 0.0,
        "max_cost_usd": 0.0, "idempotency_key": "",
    }  # fmt: skip
    return training.Wish(**{**fields, **changes})


LEARNER = {
    "role": "implementer", "state": "PAUSED", "note": "look", "waiting": "3", "learnt": "40", "held_out": "7",
    "batches": "6", "steps": "50", "cpu_seconds": 120.4, "published": "2", "refused": "1",
    "adapter_id": "implementer-v000002", "publish_time": "2026-11-01T10:00:00Z", "set_aside": {"outlier": "2"},
    "distrusted_tenants": ["loud"],
    "evaluation": {"held_out_exact": 0.9},
}  # fmt: skip


def test_the_learner_is_shown_with_what_it_did_and_what_it_left_out() -> None:
    out = io.StringIO()

    training.show_learner(Console(file=out, width=120), LEARNER)

    text = out.getvalue()
    assert "PAUSED  look" in text
    assert "3 wait, 40 learnt, 7 held out" in text
    assert "not learnt, outlier: 2" in text
    assert "contradict them: loud" in text
    assert "2 published, the last implementer-v000002" in text
    assert "held_out_exact 0.9" in text


def test_a_learner_is_told_nothing_but_what_it_knows() -> None:
    with pytest.raises(CommandError, match="pause, resume or drain"):
        training.learner(Api(), "sleep", "implementer", "")  # type: ignore[arg-type]


def job(**changes: Any) -> dict[str, Any]:
    fields = {
        "id": "j1", "state": "SUCCEEDED", "role": "implementer", "adapter_id": "implementer-v000001", "error": "",
        "note": "", "progress": PROGRESS, "first_sequence": "1", "last_sequence": "3",
    }  # fmt: skip
    return {**fields, **changes}


def shown(show: Any, data: Any) -> str:
    console = Console(file=io.StringIO(), width=200)
    show(console, data)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_an_order_without_anything_named_is_empty(tmp_path: Path) -> None:
    assert training.order_of(wish(recipe={"rank": None, "backend": ""}), tmp_path) == {}


def test_an_order_names_what_was_given(tmp_path: Path) -> None:
    data = tmp_path / "facts.jsonl"
    data.touch()
    given = wish(paths=[str(data)], recipe={"rank": 8, "seed": 0}, max_minutes=1.5, max_cost_usd=0.25, role="r")

    assert training.order_of(given, tmp_path) == {
        "role": "r", "recipe": {"rank": 8, "seed": 0}, "max_duration": "90s", "max_cost_micros": 250_000,
        "data": {"paths": [str(data)], "platinum": False, "mixture": ""},
    }  # fmt: skip


def test_data_outside_the_state_folder_is_refused_with_the_cure(tmp_path: Path) -> None:
    outside = tmp_path / "facts.jsonl"
    outside.touch()

    with pytest.raises(CommandError, match="copy it there"):
        training.order_of(wish(paths=[str(outside)]), tmp_path / "home")


def test_a_watch_shows_loss_speed_and_time_left_and_answers_the_job() -> None:
    console = Console(file=io.StringIO(), width=160, force_terminal=True)
    api: Any = Api([{"progress": PROGRESS}, {"final": job()}])

    assert training.watch(api, console, "j1")["adapter_id"] == "implementer-v000001"
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "3/6" in text
    assert "loss 1.250, 200 tokens/s, 12 s left" in text
    assert api.asked == ["/api/train/j1:watch"]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([{"final": job(state="FAILED", error="loss was NaN")}], "FAILED: loss was NaN"),
        ([{"progress": PROGRESS}], "broke off"),
        ([{"progress": PROGRESS}, {"error": {"message": "the store is away"}}], "the store is away"),
    ],
)
def test_a_watch_that_does_not_end_well_says_so(lines: list[dict[str, Any]], words: str) -> None:
    api: Any = Api(lines)
    with pytest.raises(CommandError, match=words):
        training.watch(api, Console(file=io.StringIO()), "j1")


def test_jobs_are_listed_over_pages_with_what_came_of_them() -> None:
    rejected = job(id="j2", state="REJECTED", adapter_id="", error="the held-out loss rose")
    api: Any = Api(pages=[{"jobs": [job()], "next_page_token": "7"}, {"jobs": [rejected], "next_page_token": ""}])

    text = shown(training.show_jobs, list(training.jobs(api)))

    assert "implementer-v000001" in text
    assert "the held-out loss rose" in text
    assert api.asked[1].endswith("page_token=7")


def ledger(folder: Path) -> tuple[LedgerFolder, list[Example]]:
    folder.mkdir()
    files = LedgerFolder(folder, rotate_bytes=1 << 20, clock=time.time)
    return files, [e for e in files.commit([example(n) for n in range(3)]) if isinstance(e, Example)]


def card(home: Path, job_id: str, ids: Sequence[str]) -> None:
    folder = home / "runs" / job_id
    folder.mkdir(parents=True)
    (folder / "data_card.json").write_text(json.dumps({"platinum": {"ids": list(ids)}}))


def test_adapters_that_learnt_from_a_forgotten_example_are_listed(tmp_path: Path) -> None:
    files, examples = ledger(tmp_path / "datasets")
    card(tmp_path, "j1", [examples[0].id, examples[1].id])
    card(tmp_path, "j2", [examples[2].id])
    found = [job(), job(id="j2")]
    assert training.forgotten(tmp_path, tmp_path / "datasets", found) == []

    files.forget(examples[1].id, reason="asked for", tenant="", rotate=False)

    listed = training.forgotten(tmp_path, tmp_path / "datasets", found)
    assert [(one["job"], one["forgotten"]) for one in listed] == [("j1", [examples[1].id])]
    assert examples[1].id in shown(training.show_forgotten, listed)


def test_bootstrap_hands_its_arguments_on(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hivemind.cli", "bootstrap", "--no-such-option"], capture_output=True, text=True,
        check=False, timeout=60, env={**os.environ, "HIVEMIND_HOME": str(tmp_path)},
    )  # fmt: skip

    assert done.returncode == 2
    assert "hivemind.training.bootstrap" in done.stderr
    assert "--no-such-option" in done.stderr
