"""hivemind orchestrator and skills: what is printed and drawn."""

import io
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from hivemind.cli.home import CommandError
from hivemind.cli.orchestrator import bar, draw_skills, show_history, show_skills, show_status

STEP = {"name": "map", "outcome": "DONE", "note": "3 [domains]", "duration": "0.125s", "cost_micros": "40"}
CYCLE = {
    "id": "abcdef0123", "start_time": "2026-11-24T10:00:00.123Z", "duration": "1.5s", "fencing_token": "7",
    "leader": "host-1", "requested": True, "steps": [STEP, {**STEP, "name": "refine", "outcome": "FAILED"}],
}  # fmt: skip
STATUS = {
    "leader": "host-1", "fencing_token": "7", "replica": "host-2", "paused": False, "pause_reason": "",
    "current_step": "map", "next_cycle_time": "2026-11-24T10:01:00Z", "cycles": [CYCLE],
}  # fmt: skip
SKILLS = {
    "skills": [
        {"name": "math", "n": 30.5, "mean": 0.4, "confidence": 0.3, "improved_by": ["a-v000001"]},
        {"name": "facts", "n": 9.0, "mean": 0.9, "confidence": 0.7, "improved_by": []},
    ],
    "ledger_sequence": "41",
    "bad_lines": "2",
}


def printed(show: Any, data: Any) -> str:
    console = Console(file=io.StringIO(), width=160)
    show(console, data)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_status_names_leader_step_and_what_the_last_cycle_did() -> None:
    text = printed(show_status, STATUS)

    assert "host-1 leads under token 7; host-2 answers" in text
    assert "at map now" in text
    assert "3 [domains]" in text
    assert "0.000040" in text


def test_a_pause_says_why_and_an_absent_leader_is_said() -> None:
    text = printed(show_status, {**STATUS, "paused": True, "pause_reason": "work", "leader": "", "cycles": []})

    assert "paused: work" in text
    assert "nobody leads" in text
    assert "next cycle" not in text


def test_the_history_has_a_line_a_cycle() -> None:
    text = printed(show_history, {"cycles": [CYCLE, CYCLE]})

    assert text.count("host-1") == 2
    assert "map refine" in text
    assert "0.000080" in text


def test_skills_are_bars_with_their_bound() -> None:
    text = printed(show_skills, SKILLS)

    assert "█" * 9 + "░" * 3 in text
    assert "a-v000001" in text
    assert "sequence 41 of the ledger, 2 bad lines" in text
    assert len(bar(0.3, 0.4)) == len(bar(1.0, 1.0)) == len(bar(0.0, 0.0))


def test_without_skills_the_command_says_what_makes_them() -> None:
    assert "grows with platinum" in printed(show_skills, {"skills": []})
    with pytest.raises(CommandError, match="nothing to draw"):
        draw_skills({"skills": []}, Path("x.png"))


def test_without_matplotlib_drawing_is_one_clear_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)

    with pytest.raises(CommandError, match=r"pip install 'hivemind\[gate\]'"):
        draw_skills(SKILLS, tmp_path / "skills.png")
