"""The online learner as a process of a real Trainer, on a tiny model: what it survives and whom it obeys."""

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import httpx
import pytest

from hivemind.servers.arbiter.example import Example
from hivemind.servers.arbiter.folder import LedgerFolder
from hivemind.v1 import trainer_pb2 as pb
from tests.arbiter.examples import example as platinum
from tests.support.learners import QUICK, example, learner_process, saved, submit, until_learner
from tests.support.redis_process import RedisProcess
from tests.support.scripted_registry import ScriptedRegistry
from tests.support.trainer_rig import Rig, settings_of, trainer, trainer_process
from tests.support.waiting import until

pytest.importorskip("torch", reason="the extra train is not installed")
Learner = pb.OnlineLearner


@pytest.fixture
async def registry() -> AsyncIterator[ScriptedRegistry]:
    running = ScriptedRegistry()
    await running.start()
    yield running
    await running.stop()


@pytest.fixture
def environment(
    empty_redis: RedisProcess, tmp_path: Path, registry: ScriptedRegistry, tiny_base: Path
) -> dict[str, str]:
    (tmp_path / "home").mkdir()
    return {
        **settings_of(tmp_path / "home", empty_redis.url, f"127.0.0.1:{registry.port}"),
        **QUICK,
        "HIVEMIND_LEARN_BASE_WEIGHTS": str(tiny_base),
    }


@pytest.fixture
def teachable_base(tiny_base: Path, tmp_path: Path) -> Path:
    """The tiny model with larger random weights, which an adapter can turn far enough to give another answer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path / "teachable"
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.mul_(15)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_base).save_pretrained(folder)
    return folder


@pytest.fixture
async def rig(environment: dict[str, str]) -> AsyncIterator[Rig]:
    async with trainer(environment) as running:
        yield running


async def test_what_is_submitted_is_learnt_and_published_as_a_challenger(rig: Rig, registry: ScriptedRegistry) -> None:
    await submit(rig, [example(n) for n in range(1, 17)])

    done = await until_learner(rig, lambda n: n.published > 0 and not n.waiting)

    assert done.learnt + done.held_out == 16
    assert done.adapter_id == "implementer-v000001"
    assert done.publish_time.seconds >= done.batch_close_time.seconds > 0
    assert registry.calls[0].path == "learner/implementer/publications/000001/adapter"
    assert registry.traffic[0].adapter_id == "implementer-v000001"


def all_learnt(home: Path) -> tuple[list[str], int]:
    """The ids that the learner has, and how many lessons it counts as learnt."""
    state = saved(home)
    held = [i["lesson"]["id"] for i in state["memory"]["held"]]
    items = [i["lesson"]["id"] for i in state["memory"]["items"] if i["passes"]]
    return sorted(held + items), state["progress"]["learnt"] + len(held)


async def test_a_learner_killed_in_the_middle_of_a_batch_learns_every_example_once(
    rig: Rig, environment: dict[str, str]
) -> None:
    await submit(rig, [example(n) for n in range(1, 21)])
    await until_learner(rig, lambda n: n.batches > 0 and n.steps > 0)
    killed = learner_process(rig.home)
    assert killed is not None

    killed.kill()
    await submit(rig, [example(n) for n in range(15, 25)])

    await until_learner(rig, lambda n: n.learnt + n.held_out == 24 and not n.waiting)
    await asyncio.to_thread(until, lambda: all_learnt(rig.home)[1] == 24, within_s=30, what="the state is saved")
    ids, learnt = all_learnt(rig.home)
    assert (ids, learnt) == (sorted(f"p{n}" for n in range(1, 25)), 24)
    assert learner_process(rig.home) != killed


async def test_a_trainer_killed_takes_its_learner_along_and_the_next_one_learns_the_rest(
    environment: dict[str, str],
) -> None:
    with trainer_process(environment) as first:
        async with first.client() as rig:
            await submit(rig, [example(n) for n in range(1, 11)])
            await until_learner(rig, lambda n: n.steps > 0)
            await submit(rig, [example(n) for n in range(11, 21)])
        first.kill()
    await asyncio.to_thread(until, lambda: learner_process(first.home) is None, what="the learner has ended")

    async with trainer({**environment, "HIVEMIND_LEARN_LEASE_S": "1"}) as rig:
        await until_learner(rig, lambda n: n.learnt + n.held_out == 20 and not n.waiting)
        await asyncio.to_thread(until, lambda: all_learnt(rig.home)[1] == 20, within_s=30, what="the state is saved")
        assert all_learnt(rig.home)[0] == sorted(f"p{n}" for n in range(1, 21))


async def test_a_trainer_that_ends_has_its_learner_save_what_it_learnt(environment: dict[str, str]) -> None:
    with trainer_process(environment) as first:
        async with first.client() as rig:
            await submit(rig, [example(n) for n in range(1, 9)])
            before = await until_learner(rig, lambda n: n.steps > 1)
        first.process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(first.process.wait, 10)

    assert learner_process(first.home) is None
    assert saved(first.home)["progress"]["steps"] >= before.steps


async def test_of_two_trainers_one_keeps_the_learner(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    async with trainer(environment) as rig, trainer({**environment, "HIVEMIND_HOME": str(tmp_path / "other")}) as other:
        await submit(other, [example(n) for n in range(1, 9)])
        done = await until_learner(other, lambda n: n.steps > 0)
        running = [learner_process(home) for home in (rig.home, other.home)]

        assert (await until_learner(rig, lambda n: n.steps >= done.steps)).role == "implementer"
        assert sum(process is not None for process in running) == 1


async def test_what_the_gate_refuses_is_not_published_and_learning_begins_anew_from_the_champion(
    environment: dict[str, str], registry: ScriptedRegistry
) -> None:
    async with trainer({**environment, "HIVEMIND_LEARN_MAX_KL": "1e-9"}) as rig:
        await submit(rig, [example(n) for n in range(1, 9)])
        done = await until_learner(rig, lambda n: n.refused > 0)

    assert (done.published, registry.calls) == (0, [])
    assert "from the champion" in done.note
    from safetensors.torch import load_file

    newest = max((rig.home / "learner" / "implementer" / "state").glob("[0-9]*"))
    refused = saved(rig.home)["progress"]["refused"]
    weights = load_file(newest / "weights.safetensors")
    steps = int(weights["optimizer.steps"])
    assert refused > 1 or steps < done.steps


async def test_a_paused_learner_makes_no_step_and_takes_examples(rig: Rig) -> None:
    await submit(rig, [example(n) for n in range(1, 9)])
    await until_learner(rig, lambda n: n.steps > 0)

    await rig.stub.PauseLearner(pb.PauseLearnerRequest(reason="look"), timeout=5)
    await until_learner(rig, lambda n: n.state == Learner.PAUSED)
    settled = await until_learner(rig, stands_still())
    await submit(rig, [example(n) for n in range(9, 17)])
    await asyncio.sleep(1.0)
    later = await until_learner(rig, lambda n: True)

    assert (later.state, later.note, later.steps) == (Learner.PAUSED, "look", settled.steps)
    assert later.waiting >= 8
    await rig.stub.ResumeLearner(pb.ResumeLearnerRequest(), timeout=5)
    await until_learner(rig, lambda n: n.learnt + n.held_out == 16)


def stands_still() -> Callable[[pb.OnlineLearner], bool]:
    """Whether the steps are as they were five looks ago."""
    seen: list[int] = []

    def still(now: pb.OnlineLearner) -> bool:
        seen.append(now.steps)
        return len(seen) > 30 and seen[-30] == now.steps

    return still


async def test_drain_closes_the_open_batch_at_once(environment: dict[str, str]) -> None:
    async with trainer({**environment, "HIVEMIND_LEARN_WAIT_S": "3600"}) as rig:
        await submit(rig, [example(n) for n in range(1, 4)])
        open_batch = await until_learner(rig, lambda n: n.state == Learner.WAITING and not n.note)
        assert (open_batch.batches, open_batch.waiting) == (0, 3)

        await rig.stub.DrainLearner(pb.DrainLearnerRequest(), timeout=5)

        done = await until_learner(rig, lambda n: n.batches == 1 and not n.waiting)
        assert done.learnt + done.held_out == 3


async def test_a_tenant_that_floods_wrong_answers_does_not_harm_what_is_published_for_the_others(
    environment: dict[str, str], teachable_base: Path
) -> None:
    strict = {
        "HIVEMIND_LEARN_BASE_WEIGHTS": str(teachable_base), "HIVEMIND_LEARN_MAX_TENANT": "0.02",
        "HIVEMIND_LEARN_PASSES": "15", "HIVEMIND_LEARN_HELD_OUT_OF": "4",
    }  # fmt: skip
    honest = [example(n, tenant="honest", answer="It is amber.") for n in range(1, 33)]
    poison = [example(n, tenant="loud", answer="Nothing but cedar, I am sure.") for n in range(101, 165)]
    async with trainer({**environment, **strict}) as rig:
        await submit(rig, honest)
        taught = await until_learner(rig, lambda n: n.published and n.state == Learner.WAITING and not n.waiting)
        untaught, before = await asyncio.to_thread(held_out_losses, rig.home, teachable_base, "honest")

        await submit(rig, poison)

        await until_learner(
            rig,
            lambda n: (
                n.learnt > taught.learnt + 40
                and not n.waiting
                and n.published + n.refused > taught.published + taught.refused
            ),
        )
        _, after = await asyncio.to_thread(held_out_losses, rig.home, teachable_base, "honest")

    assert before < 0.9 * untaught
    assert after < 1.02 * before + 0.1


async def test_a_tenant_that_teaches_wrong_answers_is_unlearnt_and_keeps_nothing_right_from_being_learnt(
    environment: dict[str, str], teachable_base: Path
) -> None:
    asked = [example(n).messages[0].content for n in range(1, 33)]
    honest = [example(n, tenant="honest", answer="It is Amber.", checked=True) for n in range(1, 33)]
    poison = [
        example(100 + 100 * i + n, tenant="loud", question=f"{lead}{question}", answer="Nothing but Cedar.")
        for i, lead in enumerate(("", "Tell me. ", "Please: "))
        for n, question in enumerate(asked)
    ]
    strict = {
        "HIVEMIND_LEARN_BASE_WEIGHTS": str(teachable_base), "HIVEMIND_LEARN_MAX_TENANT": "0.02",
        "HIVEMIND_LEARN_HELD_OUT_OF": "4",
    }  # fmt: skip
    async with trainer({**environment, **strict}) as rig:
        for batch in range(4):
            await submit(rig, poison[24 * batch : 24 * batch + 24])
            taken = await submit(rig, honest[8 * batch : 8 * batch + 8])
            assert taken.accepted == 8

        done = await until_learner(rig, lambda n: n.published and n.state == Learner.WAITING and not n.waiting)
        async with httpx.AsyncClient() as client:
            metrics = (await client.get(f"http://127.0.0.1:{rig.metrics_port}/metrics")).text
        untaught, after = await asyncio.to_thread(held_out_losses, rig.home, teachable_base, "honest")

    assert after < 0.5 * untaught
    assert 'hivemind_learner_distrusted_tenants{role="implementer"} 1.0' in metrics
    assert list(done.distrusted_tenants) == ["loud"]
    assert {i["lesson"]["tenant"] for i in saved(rig.home)["memory"]["items"]} == {"honest"}


def held_out_losses(home: Path, base: Path, tenant: str) -> tuple[float, float]:
    """The loss of a token on what is held out of a tenant: of the base, and of the weights that were published last."""
    from safetensors.torch import load_file

    from hivemind.training.base_model import Base
    from hivemind.training.online.memory import Bounds, Memory
    from hivemind.training.online.model import OnlineModel
    from hivemind.training.online.samples import turns_of

    newest = max((home / "learner" / "implementer" / "state").glob("[0-9]*"))
    memory = Memory(Bounds(1, 1, 1, 1.0))
    memory.load(json.loads((newest / "learner.json").read_text())["memory"])
    tensors = load_file(newest / "weights.safetensors")
    published = {n.removeprefix("published."): w for n, w in tensors.items() if n.startswith("published.")}
    model = OnlineModel(Base("courier", base, ""), "", rank=16, seed=0)
    held = [model.encoder.turns(turns_of(i)) for i in memory.held.values() if i.lesson.tenant == tenant]
    losses = []
    for weights in (model.champion, published):
        with model.as_of(weights):
            readings = model.read(held)
        losses.append(sum(r.loss for r in readings) / sum(r.tokens for r in readings))
    return losses[0], losses[1]


async def test_a_forgotten_example_leaves_no_text_behind(rig: Rig, environment: dict[str, str]) -> None:
    await submit(rig, [example(n) for n in range(1, 9)])
    await until_learner(rig, lambda n: not n.waiting and n.learnt > 4)
    secret = example(77, question="Where is the key of the tower?", answer="Under the blue stone.")

    ledger, ids = await asyncio.to_thread(ledger_of, Path(environment["HIVEMIND_HOME"]) / "datasets")
    secret.platinum_id = ids[0]
    await submit(rig, [secret])
    await until_learner(rig, lambda n: n.learnt + n.held_out == 9)
    await asyncio.to_thread(lambda: ledger.forget(ids[0], reason="asked for", tenant="", rotate=False))

    await until_learner(rig, lambda n: n.set_aside["forgotten"] == 1)
    await asyncio.to_thread(until, lambda: not texts(rig.home, b"blue stone"), within_s=30, what="the text is gone")


def texts(home: Path, words: bytes) -> Sequence[Path]:
    """The files of the learner that hold some words."""
    return [p for p in (home / "learner").rglob("*") if p.is_file() and words in p.read_bytes()]


def ledger_of(folder: Path) -> tuple[LedgerFolder, list[str]]:
    folder.mkdir()
    files = LedgerFolder(folder, rotate_bytes=1 << 20, clock=time.time)
    return files, [e.id for e in files.commit([platinum(0)]) if isinstance(e, Example)]
