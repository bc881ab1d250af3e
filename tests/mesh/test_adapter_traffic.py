"""Real adapters on the real courier through the whole mesh: registered, split, shadowed, promoted, rolled back."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.support.adapters import word_matrices, write_adapter
from tests.support.load import run_load
from tests.support.mesh import RunningMesh, Upstream, running_mesh
from tests.support.waiting import until

ROLE = "implementer"
QUESTION = {"messages": [{"role": "user", "content": "Which colour?"}], "max_tokens": 6, "temperature": 0}


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[RunningMesh]:
    config = f'[models.judge]\nendpoints = [{{ base_url = "{upstream.base_url}", model = "prefers_violet" }}]\n'
    config += f'[models.master]\nendpoints = [{{ base_url = "{upstream.base_url}", model = "ok" }}]\n'
    config += "input_price = 2.5\noutput_price = 10.0\n"
    config += '[policies.small]\nmodels = ["courier"]\n[policies.best]\ndial = 1.0\nstrategies = ["single"]\n'
    config += '[tenants.default]\npolicy = "small"\n[tenants.careful]\npolicy = "best"\n'
    with running_mesh(tmp_path_factory.mktemp("tuned"), config) as mesh:
        yield mesh


@pytest.fixture
def client(tuned: RunningMesh) -> Iterator[httpx.Client]:
    with tuned.client() as opened:
        yield opened


@pytest.fixture(scope="module")
def violet(tuned: RunningMesh) -> str:
    """The champion, which says violet, held by the engine."""
    with tuned.client() as client:
        name = registered(client, tuned, "violet")
        wish = {"adapter_id": name, "override": True, "reason": "the first"}
        assert client.post(f"/api/adapters/promote/{ROLE}", json=wish).status_code == 200
        until_held(client, name)
    return name


@pytest.fixture(scope="module")
def banana(tuned: RunningMesh, violet: str) -> str:
    """Another version, which says banana."""
    with tuned.client() as client:
        return registered(client, tuned, "banana")


def registered(client: httpx.Client, mesh: RunningMesh, word: str) -> str:
    write_adapter(mesh.home / "incoming" / word, word_matrices(word))
    answer = client.post("/api/adapters", json={"role": ROLE, "path": f"incoming/{word}"})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def state(client: httpx.Client) -> dict[str, Any]:
    found: dict[str, Any] = client.get(f"/api/adapters/state?role={ROLE}").json()["roles"][0]
    return found


def until_held(client: httpx.Client, name: str) -> None:
    def held() -> bool:
        return any(name in replica["adapters"] for replica in state(client)["replicas"])

    until(held, within_s=60, what=f"the engine holds {name}")

    def offered() -> bool:
        models = client.get("/api/models").json()["models"]
        return any(m["id"] == f"courier:{name}" and "held by 1" in m["note"] for m in models)

    until(offered, within_s=10, what="the Router knows")


def ask(client: httpx.Client, model: str = "auto", **fields: Any) -> tuple[str, str]:
    """The adapter that is said to have answered, and the answer's text."""
    answer = client.post("/v1/chat/completions", json={"model": model, **QUESTION, **fields})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["hivemind"]["adapter"] == answer.headers["x-hivemind-adapter"]
    return body["hivemind"]["adapter"], body["choices"][0]["message"]["content"]


def test_the_champion_answers_for_auto_and_by_its_alias(client: httpx.Client, violet: str) -> None:
    for model in ("auto", "courier"):
        adapter, text = ask(client, model)
        assert (adapter, "violet" in text) == (violet, True)


def test_the_base_model_and_every_registered_adapter_can_be_asked_by_name(
    client: httpx.Client, violet: str, banana: str
) -> None:
    assert "violet" not in ask(client, "courier:base")[1]
    assert ask(client, "courier:base")[0] == ""
    adapter, text = ask(client, f"courier:{banana}")
    assert (adapter, "banana" in text) == (banana, True)


def test_an_unknown_adapter_is_a_400_that_names_the_field(client: httpx.Client, violet: str) -> None:
    answer = client.post("/v1/chat/completions", json={"model": "courier:implementer-v000999", **QUESTION})

    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "model"


def test_traffic_is_split_by_session_and_every_answer_names_its_adapter(
    client: httpx.Client, violet: str, banana: str
) -> None:
    wish = {"adapter_id": banana, "traffic": 0.5}
    assert client.post(f"/api/adapters/traffic/{ROLE}", json=wish).status_code == 200
    until_held(client, banana)
    until(lambda: "50%" in note_of(client, banana), what="the Router knows the split")

    seen: Counter[str] = Counter()
    for i in range(24):
        adapter, text = ask(client, user=f"session-{i}")
        assert {violet: "violet", banana: "banana"}[adapter] in text
        seen[adapter] += 1
    again = [ask(client, user="session-0")[0] for _ in range(3)]

    assert 4 <= seen[banana] <= 20  # outside with a probability under three in ten thousand
    assert len(set(again)) == 1
    until(lambda: int(state(client)["challenges"][0]["evidence"]["requests"]) >= seen[banana], what="evidence")


def note_of(client: httpx.Client, name: str) -> str:
    models = client.get("/api/models").json()["models"]
    return str(next(m["note"] for m in models if m["id"] == f"courier:{name}"))


def test_a_shadow_answers_in_the_background_and_is_judged_against_the_champion(
    client: httpx.Client, violet: str, banana: str
) -> None:
    assert client.post(f"/api/adapters/traffic/{ROLE}", json={"adapter_id": banana, "shadow": True}).status_code == 200
    until(lambda: "shadow" in note_of(client, banana), what="the Router knows the shadow")

    def judged() -> bool:
        adapter, text = ask(client)
        assert (adapter, "banana" in text) == (violet, False)
        evidence = state(client)["challenges"][0]["evidence"]
        return int(evidence["losses"]) >= 2

    until(judged, within_s=60, what="the judge prefers the champion")
    assert int(state(client)["challenges"][0]["evidence"]["wins"]) == 0


def test_a_shadow_is_tried_too_where_auto_prefers_another_model(client: httpx.Client, violet: str, banana: str) -> None:
    client.post(f"/api/adapters/traffic/{ROLE}", json={"adapter_id": banana, "shadow": True}).raise_for_status()
    until(lambda: "shadow" in note_of(client, banana), what="the Router knows the shadow")
    before = state(client)["challenges"][0]["evidence"]

    def tried() -> bool:
        fields = {"model": "auto", **QUESTION}
        answer = client.post("/v1/chat/completions", json=fields, headers={"x-hivemind-tenant": "careful"})
        assert answer.json()["hivemind"]["chosen_model"] == "master"
        now = state(client)["challenges"][0]["evidence"]
        return int(now["losses"]) > int(before["losses"]) and int(now["requests"]) > int(before["requests"])

    until(tried, within_s=60, what="the champion and the shadow have answered and were compared")


async def test_nothing_fails_while_adapters_are_loaded_promoted_and_rolled_back(
    tuned: RunningMesh, violet: str, banana: str
) -> None:
    async def changes() -> None:
        await asyncio.to_thread(change_everything, tuned, violet, banana)

    load = await run_load(
        tuned.base_url, model="auto", seconds=12, concurrency=2, meanwhile=changes, max_tokens=4, pause_s=0.05
    )

    assert load.failed == 0, load.failures[:3]
    assert load.outcomes[200] >= 2


def change_everything(mesh: RunningMesh, violet: str, banana: str) -> None:
    with mesh.client() as client:
        third = registered(client, mesh, "green")
        client.post(f"/api/adapters/traffic/{ROLE}", json={"adapter_id": third, "traffic": 0.25})
        wish = {"adapter_id": banana, "override": True, "reason": "a test", "expected_champion": violet}
        assert client.post(f"/api/adapters/promote/{ROLE}", json=wish).status_code == 200
        until(lambda: ask(client)[0] in (banana, third), within_s=20, what="the new champion answers")
        rolled = client.post(f"/api/adapters/rollback/{ROLE}", json={"reason": "a test"})
        assert rolled.json()["champion"] == violet
        until(lambda: ask(client)[0] in (violet, third), within_s=20, what="the old champion answers again")
