"""hivemind platinum: what it reads from the files itself, and how it draws an example."""

import io
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict
from rich.console import Console

from hivemind.cli import platinum
from hivemind.servers.arbiter.example import Example
from hivemind.servers.arbiter.folder import LedgerFolder
from hivemind.servers.arbiter.translate import example_message
from tests.arbiter.examples import example


def ledger(folder: Path, count: int = 3) -> tuple[LedgerFolder, list[Example]]:
    files = LedgerFolder(folder, rotate_bytes=3000, clock=time.time)
    return files, [e for e in files.commit([example(n) for n in range(count)]) if isinstance(e, Example)]


def hivemind(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hivemind.cli", "platinum", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_verify_needs_no_mesh_and_ends_with_0_when_the_chain_holds(tmp_path: Path) -> None:
    ledger(tmp_path)

    done = hivemind("verify", "--folder", str(tmp_path))

    assert done.returncode == 0, done.stderr
    assert "the chain holds: 3 lines" in done.stdout


def test_verify_names_the_line_and_ends_with_1_when_it_is_broken(tmp_path: Path) -> None:
    ledger(tmp_path)
    path = next(tmp_path.glob("training_metadata-*.jsonl"))
    path.write_text(path.read_text().replace("draft 1", "draft X"))

    done, as_json = (
        hivemind("verify", "--folder", str(tmp_path)),
        hivemind("verify", "--folder", str(tmp_path), "--json"),
    )

    assert (done.returncode, as_json.returncode) == (1, 1)
    assert f"{path.name}:2 (sequence 2): was changed" in done.stdout
    assert json.loads(as_json.stdout)["problems"][0]["line"] == 2


def test_without_a_ledger_it_says_so_in_one_sentence(tmp_path: Path) -> None:
    done = hivemind("verify", "--folder", str(tmp_path))

    assert done.returncode == 1
    assert done.stderr.startswith("hivemind: no ledger in ")


def test_export_leaves_out_what_is_forgotten(tmp_path: Path) -> None:
    files, stored = ledger(tmp_path)
    files.forget(stored[1].id, reason="", tenant="", rotate=False)

    done = hivemind("export", "--folder", str(tmp_path))

    assert [json.loads(line)["id"] for line in done.stdout.splitlines()] == [stored[0].id, stored[2].id]
    assert hivemind("export", "--folder", str(tmp_path), "--tenant", "nobody").stdout == ""


def shown(data: dict[str, Any], *, colour: bool) -> str:
    out = io.StringIO()
    console = Console(file=out, width=200, force_terminal=colour, color_system="standard" if colour else None)
    platinum.show_example(console, data)
    return out.getvalue()


def test_show_draws_the_draft_against_the_final_answer_with_who_decided_and_why(tmp_path: Path) -> None:
    new = example(1, draft="It boils at 90 degrees.", final_platinum_answer="It boils at 100 degrees.")
    files = LedgerFolder(tmp_path, rotate_bytes=1 << 30, clock=time.time)
    stored = files.commit([new])[0]
    assert isinstance(stored, Example)
    message = example_message(stored)
    data = MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)

    plain, coloured = shown(data, colour=False), shown(data, colour=True)

    assert "--- draft (courier, score 0.20)" in plain
    assert "+++ final (ORACLE deepseek-chat, score 0.93)" in plain
    assert "It boils at 90100 degrees." in plain
    assert "\x1b[9;31m90\x1b[0m\x1b[32m100\x1b[0m" in coloured
    assert "1. The Oracle corrected the number." in plain
    assert stored.sha256 in plain
