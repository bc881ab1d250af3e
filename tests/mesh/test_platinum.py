"""Platinum examples through Envoy, the command line and grpcurl, on a running mesh; another process of the ledger's
folder stores them, as a second Arbiter would."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from hivemind.servers.arbiter.example import Example
from hivemind.servers.arbiter.folder import LedgerFolder
from tests.arbiter.examples import example
from tests.support.mesh import RunningMesh
from tests.support.waiting import until

GRPCURL = str(Path(sys.executable).parent / "grpcurl")
STREAM = "hivemind.v1.ArbiterService/StreamPlatinum"


class Writer:
    """Stores examples in the mesh's ledger, and waits until the mesh shows them."""

    def __init__(self, mesh: RunningMesh, client: httpx.Client) -> None:
        self._client = client
        self._files = LedgerFolder(mesh.home / "datasets", rotate_bytes=1 << 30, clock=time.time)

    def store(self, *numbers: int, **fields: Any) -> list[Example]:
        found = [e for e in self._files.commit([example(n, **fields) for n in numbers]) if isinstance(e, Example)]
        until(lambda: self._client.get(f"/api/platinum/{found[-1].id}").status_code == 200, what="the mesh has seen it")
        return found


@pytest.fixture
def writer(mesh: RunningMesh, client: httpx.Client) -> Writer:
    return Writer(mesh, client)


def test_the_rest_api_pages_and_shows_examples(client: httpx.Client, writer: Writer) -> None:
    stored = writer.store(*range(5), tenant="rest")
    first = client.get("/api/platinum", params={"tenant": "rest", "page_size": 3}).json()
    writer.store(9, tenant="rest")
    token = first["next_page_token"]
    second = client.get("/api/platinum", params={"tenant": "rest", "page_size": 3, "page_token": token}).json()

    assert [e["id"] for e in first["examples"] + second["examples"]] == [e.id for e in reversed(stored)]
    shown = client.get(f"/api/platinum/{stored[0].id}").json()
    assert shown["role"] == "arbiter_refined"
    assert shown["provenance"]["cost_micros"] == "120"
    assert client.get("/api/platinum:stats").json()["by_tenant"]["rest"] == "6"
    assert client.get("/api/platinum/no-such-id").status_code == 404
    assert client.get("/api/platinum", params={"page_token": "x"}).status_code == 400


def test_the_command_line_lists_shows_counts_exports_forgets_and_verifies(
    mesh: RunningMesh, writer: Writer, tmp_path: Path
) -> None:
    one, two = writer.store(1, 2, tenant="cli")
    listed = json.loads(mesh.command("platinum", "list", "--tenant", "cli", "--json").stdout)
    shown = mesh.command("platinum", "show", one.id).stdout
    out = tmp_path / "out.jsonl"
    mesh.command("platinum", "export", "--tenant", "cli", "--out", str(out))

    forgotten = json.loads(mesh.command("platinum", "forget", "--id", two.id, "--rotate", "--json").stdout)
    verdict = json.loads(mesh.command("platinum", "verify", "--json").stdout)

    assert [e["id"] for e in listed["examples"]] == [two.id, one.id]
    assert "The Oracle corrected the number." in shown
    assert "deepseek-chat" in shown
    assert [json.loads(line)["id"] for line in out.read_text().splitlines()] == [one.id, two.id]
    assert forgotten["ids"] == [two.id]
    assert verdict["holds"]
    assert json.loads(mesh.command("platinum", "stats", "--json").stdout)["by_tenant"]["cli"] == "1"
    assert two.id not in mesh.command("platinum", "list", "--tenant", "cli").stdout
    assert "name exactly one" in mesh.command("platinum", "forget", check=False).stderr


def examples_of(mesh: RunningMesh, group: str) -> tuple[subprocess.Popen[str], Iterator[dict[str, Any]]]:
    """A grpcurl on the stream through Envoy, and the examples that it prints."""
    request = json.dumps({"group": group, "consumer": "grpcurl"})
    command = [GRPCURL, "-plaintext", "-d", request, mesh.target, STREAM]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    out = process.stdout

    def found() -> Iterator[dict[str, Any]]:
        text = ""
        for line in out:
            text += line
            if line.rstrip() == "}":
                message = json.loads(text)
                text = ""
                if "example" in message:
                    yield message["example"]

    return process, found()


def test_grpcurl_sees_backlog_and_live_examples_and_resumes_after_a_break(
    mesh: RunningMesh, client: httpx.Client, writer: Writer
) -> None:
    stored = writer.store(1, 2, tenant="stream")
    first, examples = examples_of(mesh, "grpcurl")
    seen = [next(e for e in examples if e["id"] == s.id) for s in stored]
    live = writer.store(3, tenant="stream")[0]
    seen.append(next(examples))
    upto = list(range(1, int(seen[1]["sequence"]) + 1))
    client.post("/api/platinum:ack", json={"group": "grpcurl", "sequences": upto}).raise_for_status()
    first.kill()
    first.wait()

    second, again = examples_of(mesh, "grpcurl")
    resumed = next(again)
    second.kill()
    second.wait()

    assert seen[-1]["id"] == live.id
    assert resumed["id"] == live.id
