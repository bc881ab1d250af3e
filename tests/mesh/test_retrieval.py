"""A demonstration given once, and the real courier answers another wording of the question by it: only for its tenant,
only under a policy that says so, and no longer once it is forgotten."""

import secrets
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.support.mesh import RunningMesh, running_mesh
from tests.support.waiting import until

CONFIG = '[policies.recall]\nexamples = 1\n[tenants.scribe]\npolicy = "recall"\n[tenants.other]\npolicy = "recall"\n'
QUIET = {"HIVEMIND_NOMINATE": "0", "HIVEMIND_EXPLORE": "0"}
TAUGHT, ASKED = "Who is the mayor of Beldale?", "Which person holds the office of mayor in Beldale?"


@pytest.fixture(scope="module")
def recalling(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningMesh]:
    with running_mesh(tmp_path_factory.mktemp("recalling"), CONFIG, replicas="router=2", environment=QUIET) as mesh:
        yield mesh


def complete(client: httpx.Client, text: str, tenant: str, max_tokens: int = 24, **headers: str) -> dict[str, Any]:
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": max_tokens, "temperature": 0}
    answer = client.post("/api/complete", json=body, headers={"x-hivemind-tenant": tenant, **headers})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def examples(client: httpx.Client, text: str, tenant: str) -> list[list[str]]:
    """What several decisions, so those of both replicas, would show."""
    body = {"messages": [{"role": "user", "content": text}]}
    made = [client.post("/api/route", json=body, headers={"x-hivemind-tenant": tenant}).json() for _ in range(8)]
    return [[e["platinum_id"] for e in decision["examples"]] for decision in made]


def test_the_courier_answers_an_invented_fact_by_retrieval_until_it_is_forgotten(recalling: RunningMesh) -> None:
    name = f"{secrets.choice(('Ada', 'Boris', 'Clara', 'Dmitri'))} the {secrets.choice(('baker', 'weaver', 'potter'))}"
    with recalling.client() as client:
        first = complete(client, TAUGHT, "scribe", max_tokens=4)
        opinion = {"request_id": first["request_id"], "demonstration": f"The mayor of Beldale is {name}."}
        assert client.post("/api/feedback", json=opinion).status_code == 200
        shown = until(
            lambda: all(seen := examples(client, ASKED, "scribe")) and seen, within_s=30, what="both replicas know it"
        )
        platinum_id = shown[0][0]
        assert shown == [[platinum_id]] * 8

        answer = complete(client, ASKED, "scribe")
        record = client.get(f"/api/requests/{answer['request_id']}").json()
        traced = recalling.command("trace", platinum_id).stdout

        assert name in answer["message"]["content"]
        assert answer["reason"].endswith(f"it is shown the platinum example {platinum_id}.")
        assert [e["platinum_id"] for e in record["decision"]["examples"]] == [platinum_id]
        assert record["calls"][0]["example_ids"] == [platinum_id]
        assert f"{answer['request_id']}: the courier was shown it" in " ".join(traced.split())

        assert examples(client, TAUGHT, "other") == [[]] * 8
        assert name not in complete(client, ASKED, "other")["message"]["content"]

        recalling.command("platinum", "forget", "--id", platinum_id)
        until(lambda: examples(client, ASKED, "scribe") == [[]] * 8, within_s=5, what="it is forgotten everywhere")
        assert name not in complete(client, ASKED, "scribe")["message"]["content"]
