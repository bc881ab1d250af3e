"""One platinum example on its whole way, on a running mesh: request, ledger, learner, adapter, first answer."""

import json
import re

import httpx

from hivemind.servers.adapter_registry.base_model import read_gguf
from hivemind.servers.common.courier import WHEEL_SHA256, wheel_file
from tests.support.mesh import RunningMesh
from tests.support.peft import write_adapter
from tests.support.waiting import until

ROLE = "implementer"


def handed_over(mesh: RunningMesh) -> float:
    """How many examples the learner has taken from the lorax client since that was started."""
    port = mesh.plan["processes"]["lorax_client"]["metrics"]
    text = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=5).text
    found = re.search(r'^hivemind_examples_submitted_total\{outcome="accepted"\} (\S+)$', text, re.MULTILINE)
    assert found is not None, text
    return float(found[1])


def taught(client: httpx.Client, mesh: RunningMesh, question: str, answer: str) -> dict[str, str]:
    """An example that came of a person's correction, when the learner has taken it."""
    before = handed_over(mesh)
    wish = {"messages": [{"role": "user", "content": question}], "model": "ok"}
    request_id = client.post("/api/complete", json=wish).json()["request_id"]
    client.post("/api/feedback", json={"request_id": request_id, "demonstration": answer})

    def stored() -> dict[str, str] | None:
        examples = client.get("/api/platinum").json()["examples"]
        return next((e for e in examples if e["request_id"] == request_id), None)

    example = until(stored, within_s=20, what="the example")
    assert example is not None
    until(lambda: handed_over(mesh) > before, within_s=20, what="the learner has it")
    return example


def registered(client: httpx.Client, mesh: RunningMesh, sequence: int) -> str:
    """An adapter that says it has learnt up to a sequence."""
    base = read_gguf("courier", wheel_file(), sha256=WHEEL_SHA256)
    folder = write_adapter(mesh.home / "incoming" / "way", base.shapes, seed=77)
    (folder / "adapter_meta.json").write_text(json.dumps({"first_sequence": sequence, "last_sequence": sequence}))
    return str(client.post("/api/adapters", json={"role": ROLE, "path": "incoming/way"}).json()["id"])


def test_an_example_can_be_followed_to_the_first_answer_of_an_adapter_that_learnt_it(
    client: httpx.Client, mesh: RunningMesh
) -> None:
    mesh.wait_ready()
    example = taught(client, mesh, "Which bridge is the longest of Ruritania?", "The Bridge of Strelsau.")
    learner = client.get("/api/learner").json()
    adapter = registered(client, mesh, int(example["sequence"]))

    def held() -> bool:
        (role,) = (r for r in client.get("/api/adapters/state").json()["roles"] if r["role"] == ROLE)
        return bool(role["replicas"]) and all(adapter in r["adapters"] for r in role["replicas"])

    until(held, within_s=30, what="every replica holds a version that has no traffic")
    wish = {"messages": [{"role": "user", "content": "Hello"}], "model": f"courier:{adapter}", "max_tokens": 4}
    answer = client.post("/api/complete", json=wish).json()
    found = json.loads(mesh.command("trace", example["id"], "--json").stdout)
    shown = mesh.command("trace", example["id"]).stdout

    assert int(learner["waiting"]) + int(learner["learnt"]) + int(learner["held_out"]) > 0
    assert found["request"]["request_id"] == example["request_id"]
    assert "by a client, who gave the right answer" in shown
    assert found["learner"]["role"] == ROLE
    assert adapter in [a["id"] for a in found["adapters"]]
    assert found["first_answer"]["request_id"] == answer["request_id"]
    assert found["missing"] == []
    for station in ("request", "nominated", "example", "learner", "adapter", "answer"):
        assert f"  {station} " in shown


def test_a_lorax_client_that_is_killed_goes_on_with_the_next_example(client: httpx.Client, mesh: RunningMesh) -> None:
    mesh.wait_ready()
    for process in mesh.processes("hivemind.training.lorax_client"):
        process.kill()
    mesh.wait_ready()

    assert taught(client, mesh, "Who guards the moat of Zenda?", "Captain Sapt.")["id"]
