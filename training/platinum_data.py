"""Reads the platinum ledger as training data: refined examples with consent that nobody has asked to forget.

The lines are the Arbiter's, see docs/ledger.md. A line that is broken, changed or of another schema is skipped and
counted.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hivemind.servers.arbiter.example import ROLE
from hivemind.training.records import BROKEN_JSON, UNREADABLE, bounded_lines

PATTERN: Final = "training_metadata*.jsonl"
CHANGED: Final = "was changed after it was written"
NO_CONSENT: Final = "without consent"
FORGOTTEN: Final = "forgotten"
INCOMPLETE: Final = "lacks a field"
_TOMBSTONE: Final = "tombstone"
_SEAL: Final = b',"sha256":"'


@dataclass(frozen=True, slots=True)
class PlatinumRecord:
    """An example to learn from, as a conversation that ends with its final answer."""

    id: str
    sequence: int
    licence: str
    record: dict[str, Any]


def read_platinum(folder: Path, refused_tenants: Collection[str], skipped: Counter[str]) -> Iterator[PlatinumRecord]:
    """The examples by sequence of file and line; what is left out is counted in `skipped` by reason."""
    files = sorted(folder.glob(PATTERN), key=lambda f: (f.name == "training_metadata.jsonl", f.name))
    forgotten = {name for line in _lines(files, Counter()) if line.get("role") == _TOMBSTONE for name in _named(line)}
    for line in _lines(files, skipped):
        if line.get("role") != ROLE:
            continue
        reason = _refusal(line, forgotten, refused_tenants)
        if reason:
            skipped[reason] += 1
        else:
            yield _example(line)


def _lines(files: list[Path], skipped: Counter[str]) -> Iterator[dict[str, Any]]:
    for path in files:
        try:
            with path.open("rb") as file:
                for raw in bounded_lines(file, skipped):
                    yield from _line(raw.rstrip(b"\n"), skipped)
        except OSError:
            skipped[UNREADABLE] += 1


def _line(raw: bytes, skipped: Counter[str]) -> Iterator[dict[str, Any]]:
    try:
        fields = json.loads(raw)
    except (ValueError, RecursionError):
        skipped[BROKEN_JSON] += 1
        return
    if not isinstance(fields, dict):
        skipped[INCOMPLETE] += 1
    elif fields.get("role") in (ROLE, _TOMBSTONE) and not _is_sealed(raw, fields.get("sha256")):
        skipped[CHANGED] += 1
    else:
        yield fields


def _is_sealed(raw: bytes, sha256: object) -> bool:
    """Whether the hash at a line's end is that of what stands before it."""
    body = raw[: raw.rfind(_SEAL)]
    return hashlib.sha256(body).hexdigest() == sha256


def _named(tombstone: dict[str, Any]) -> list[str]:
    names = tombstone.get("forgets")
    return names.split() if isinstance(names, str) else []


def _refusal(line: dict[str, Any], forgotten: set[str], refused_tenants: Collection[str]) -> str:
    kinds = {"id": str, "sequence": int, "messages": list, "final_platinum_answer": str, "tenant": str, "licence": str}
    if not all(isinstance(line.get(name), kind) for name, kind in kinds.items()):
        return INCOMPLETE
    if line["id"] in forgotten:
        return FORGOTTEN
    if not line.get("consent") or line["tenant"] in refused_tenants:
        return NO_CONSENT
    return ""


def _example(line: dict[str, Any]) -> PlatinumRecord:
    answer = {"role": "assistant", "content": line["final_platinum_answer"]}
    return PlatinumRecord(line["id"], line["sequence"], line["licence"], {"messages": [*line["messages"], answer]})
