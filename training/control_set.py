"""The texts shipped with hivemind: control texts, which only measure forgetting, and replay, which works against it.

No text is of both kinds. All were written for hivemind (CC0-1.0, see control/LICENSE).
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from hivemind.training.formatting import Turn

FILE: Final = Path(__file__).parent / "control" / "control.jsonl"


@dataclass(frozen=True, slots=True)
class ControlSet:
    """Questions with answers as turns, and plain texts; `control_*` are measured, `replay_*` are trained on."""

    control_questions: tuple[tuple[Turn, ...], ...]
    control_texts: tuple[str, ...]
    replay_questions: tuple[tuple[Turn, ...], ...]
    replay_texts: tuple[str, ...]


@cache
def control_set() -> ControlSet:
    """What the package holds."""
    rows = [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]

    def questions(use: str) -> tuple[tuple[Turn, ...], ...]:
        found = [r for r in rows if (r["use"], r["kind"]) == (use, "question")]
        return tuple((Turn("user", r["question"]), Turn("assistant", r["answer"])) for r in found)

    def texts(use: str) -> tuple[str, ...]:
        return tuple(r["text"] for r in rows if (r["use"], r["kind"]) == (use, "text"))

    return ControlSet(questions("control"), texts("control"), questions("replay"), texts("replay"))
