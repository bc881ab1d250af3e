"""Refinement through the whole mesh: REST, the Governor's switch, and an Arbiter that dies again and again."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.mesh import RunningMesh, running_mesh, scripted_upstream
from tests.support.scripted_oracle import REFINED
from tests.support.waiting import until

CLIENTS = 12
KILLS = 3
BUDGET = {"tenant": "*", "period": "DAY", "purpose": "REFINEMENT", "limit_micros": 10**9}


@pytest.fixture(scope="module")
def refining(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningMesh]:
    with scripted_upstream() as upstream:
        table = f'endpoints = [{{ base_url = "{upstream.base_url}", model = "o_good" }}]\ncontext_tokens = 128000\n'
        prices = "input_price = 2.5\noutput_price = 10.0\n"
        config = "".join(f"[models.{alias}]\n{table}{prices}" for alias in ("oracle", "arbiter"))
        with running_mesh(tmp_path_factory.mktemp("refining"), config) as mesh, mesh.client() as client:
            client.post("/api/config/governor", json={"budgets": [BUDGET]}).raise_for_status()
            yield mesh


def body(name: str = "x", **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"What is the capital of France? ({name})"}]
    return {"messages": messages, "draft": "It is a big city.", **fields}


def ledger_ids(mesh: RunningMesh) -> list[str]:
    lines = [line for file in (mesh.home / "datasets").glob("training_metadata*.jsonl") for line in _lines(file)]
    return [line["id"] for line in lines if line["role"] == "arbiter_refined"]


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_draft_is_refined_over_rest(refining: RunningMesh) -> None:
    with refining.client() as client:
        answer = client.post("/api/refine", json=body()).json()

    assert answer["example"]["final_platinum_answer"] == REFINED
    assert answer["example"]["provenance"]["oracle_model"] == "o_good-2026-11"
    assert answer["example"]["id"] in ledger_ids(refining)


def test_the_switch_of_the_governor_holds_within_a_second(refining: RunningMesh) -> None:
    with refining.client() as client:

        def status() -> int:
            return client.post("/api/refine", json=body()).status_code

        client.post("/api/config/governor", json={"enabled": False}).raise_for_status()
        until(lambda: status() == 400, within_s=1.0, what="refinement is off")
        refused = client.post("/api/refine", json=body()).json()
        client.post("/api/config/governor", json={"enabled": True}).raise_for_status()
        until(lambda: status() == 200, within_s=1.0, what="refinement is on again")

    assert "REFINEMENT_DISABLED" in json.dumps(refused)


def test_an_arbiter_that_is_killed_again_and_again_keeps_every_acknowledged_example_once(
    refining: RunningMesh,
) -> None:
    acknowledged: dict[str, str] = {}
    ended = threading.Event()

    def refine_for_ever(client_number: int) -> None:
        number = 0
        with refining.client() as client:
            while not ended.is_set():
                key = f"key-{client_number}-{number}"
                try:
                    answer = client.post("/api/refine", json=body(key, idempotency_key=key))
                except httpx.HTTPError:
                    continue
                if answer.status_code == 200:
                    acknowledged[key] = answer.json()["example"]["id"]
                    number += 1

    with ThreadPoolExecutor(CLIENTS) as pool:
        running = [pool.submit(refine_for_ever, i) for i in range(CLIENTS)]
        try:
            for _ in range(KILLS):
                until(_more_than(acknowledged, 15), within_s=60.0, what="examples are acknowledged")
                refining.kill("arbiter")
            until(_more_than(acknowledged, 15), within_s=60.0, what="examples are acknowledged after the last death")
        finally:
            ended.set()
        for future in running:
            future.result()

    stored = ledger_ids(refining)
    assert len(stored) == len(set(stored))
    assert set(acknowledged.values()) <= set(stored)
    assert len(set(acknowledged.values())) == len(acknowledged)


def _more_than(acknowledged: dict[str, str], more: int) -> Any:
    begin = len(acknowledged)
    return lambda: len(acknowledged) > begin + more
