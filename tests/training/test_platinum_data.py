import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

from hivemind.training.platinum_data import (
    CHANGED,
    FORGOTTEN,
    INCOMPLETE,
    NO_CONSENT,
    PlatinumRecord,
    read_platinum,
)
from hivemind.training.records import BROKEN_JSON


def sealed(fields: dict[str, Any]) -> bytes:
    """A line as the Arbiter writes it: its hash is over all that stands before the hash."""
    body = json.dumps(fields, separators=(",", ":")).encode()[:-1]
    return body + b',"sha256":"' + hashlib.sha256(body).hexdigest().encode() + b'"}\n'


def example(sequence: int, **changes: Any) -> bytes:
    fields = {
        "id": f"id-{sequence}", "sequence": sequence, "role": "arbiter_refined", "tenant": "t1", "consent": "tenant",
        "messages": [{"role": "user", "content": f"q{sequence}", "name": ""}], "draft": "draft",
        "final_platinum_answer": f"a{sequence}", "licence": "CC0-1.0",
    }  # fmt: skip
    return sealed({**fields, **changes})


def tombstone(*ids: str) -> bytes:
    return sealed({"id": "t", "sequence": 99, "role": "tombstone", "forgets": " ".join(ids), "forgets_sha256": ""})


def read(folder: Path, *refused_tenants: str) -> tuple[list[PlatinumRecord], Counter[str]]:
    skipped: Counter[str] = Counter()
    return list(read_platinum(folder, refused_tenants, skipped)), skipped


def test_examples_of_all_files_come_in_the_order_of_the_ledger_and_end_with_the_final_answer(tmp_path: Path) -> None:
    (tmp_path / "training_metadata.jsonl").write_bytes(example(3))
    (tmp_path / "training_metadata-000001.jsonl").write_bytes(example(1) + example(2))
    found, _ = read(tmp_path)
    assert [e.sequence for e in found] == [1, 2, 3]
    assert found[0].record["messages"][-1] == {"role": "assistant", "content": "a1"}


def test_what_was_forgotten_in_a_later_file_is_not_learnt(tmp_path: Path) -> None:
    (tmp_path / "training_metadata-000001.jsonl").write_bytes(example(1) + example(2))
    (tmp_path / "training_metadata.jsonl").write_bytes(tombstone("id-1"))
    found, skipped = read(tmp_path)
    assert [e.id for e in found] == ["id-2"]
    assert skipped == {FORGOTTEN: 1}


def test_examples_without_consent_or_of_a_tenant_that_took_it_back_are_not_learnt(tmp_path: Path) -> None:
    lines = example(1, consent="") + example(2, tenant="t2") + example(3)
    (tmp_path / "training_metadata.jsonl").write_bytes(lines)
    found, skipped = read(tmp_path, "t2")
    assert [e.sequence for e in found] == [3]
    assert skipped == {NO_CONSENT: 2}


def test_lines_that_are_broken_or_changed_or_of_another_role_are_skipped(tmp_path: Path) -> None:
    changed = example(1).replace(b'"a1"', b'"a9"')
    lines = changed + b"{torn" + b"\n" + example(2, role="forgotten") + example(3, messages="x") + example(4)
    (tmp_path / "training_metadata.jsonl").write_bytes(lines)
    found, skipped = read(tmp_path)
    assert [e.sequence for e in found] == [4]
    assert skipped == {CHANGED: 1, BROKEN_JSON: 1, INCOMPLETE: 1}
