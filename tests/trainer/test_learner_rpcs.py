"""The RPCs of the online learner without a learner: what is taken, refused, and kept over the death of Redis."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from hivemind.servers.trainer.learner_keys import Keys
from hivemind.servers.trainer.lesson import Lesson, Turn
from hivemind.v1 import common_pb2
from hivemind.v1 import trainer_pb2 as pb
from tests.support.redis_process import RedisProcess, redis_process
from tests.support.scripted_registry import ScriptedRegistry
from tests.support.trainer_rig import Rig, reason_of, settings_of, trainer

KEYS = Keys("implementer")


def example(
    name: str, *, question: str = "", answer: str = "", tenant: str = "", sequence: int = 0, checked: bool = False
) -> pb.TrainingExample:
    asked = question or f"Who is the mayor of {name}?"
    return pb.TrainingExample(
        platinum_id=f"id-{name}", sequence=sequence, tenant=tenant, answer=answer or f"The mayor of {name} is Ada.",
        checked=checked, messages=[common_pb2.ChatMessage(role="user", content=asked)],
    )  # fmt: skip


async def submit(rig: Rig, *examples: pb.TrainingExample, **fields: object) -> pb.SubmitExamplesResponse:
    return await rig.stub.SubmitExamples(pb.SubmitExamplesRequest(examples=examples, **fields), timeout=10)


def inbox(redis: RedisProcess) -> list[Lesson]:
    return [Lesson.from_json(entry[b"lesson"]) for _, entry in redis.client.xrange(KEYS.inbox)]


@pytest.fixture
async def quiet(environment: dict[str, str]) -> AsyncIterator[Rig]:
    """A Trainer that starts no learner."""
    async with trainer({**environment, "HIVEMIND_LEARN": "false"}) as running:
        yield running


async def test_what_is_answered_as_accepted_lies_in_the_inbox(quiet: Rig, empty_redis: RedisProcess) -> None:
    answer = await submit(quiet, example("Corford", sequence=3), example("Beldale", sequence=4))

    assert (answer.accepted, answer.duplicates, dict(answer.refused)) == (2, 0, {})
    assert [(n.id, n.sequence, n.tenant) for n in inbox(empty_redis)] == [
        ("id-Corford", 3, "default"), ("id-Beldale", 4, "default"),
    ]  # fmt: skip
    learner = await quiet.stub.GetLearner(pb.GetLearnerRequest(), timeout=5)
    assert (learner.role, learner.waiting) == ("implementer", 2)
    assert learner.state == pb.OnlineLearner.UNAVAILABLE
    assert learner.note


async def test_an_example_is_taken_once_whether_its_id_or_its_text_comes_again(quiet: Rig) -> None:
    again = example("Corford")
    again.platinum_id = "another"
    again.messages[0].content = "who is  the mayor of CORFORD?"

    answers = [await submit(quiet, e) for e in (example("Corford"), example("Corford"), again)]

    assert [(a.accepted, a.duplicates) for a in answers] == [(1, 0), (0, 1), (0, 1)]


async def test_another_answer_to_a_question_is_refused_as_a_contradiction(
    quiet: Rig, empty_redis: RedisProcess
) -> None:
    await submit(quiet, example("Corford"))

    asked = "Who is the mayor of Corford?"
    answer = await submit(quiet, example("Other", question=asked, answer="The mayor of Corford is Boris."))

    assert (answer.accepted, dict(answer.refused)) == (0, {"contradiction": 1})
    assert len(inbox(empty_redis)) == 1


async def test_a_checked_answer_takes_the_place_of_another_tenants_that_nobody_checked(
    quiet: Rig, empty_redis: RedisProcess
) -> None:
    wrong = example("Corford", answer="The mayor of Corford is Boris.", tenant="loud")
    right = example("Other", question="Who is the mayor of Corford?", answer="It is Ada.", tenant="quiet", checked=True)

    answers = [await submit(quiet, e) for e in (wrong, right, right)]

    assert [(a.accepted, a.duplicates) for a in answers] == [(1, 0), (1, 0), (0, 1)]
    entries = [entry for _, entry in empty_redis.client.xrange(KEYS.inbox)]
    assert [(Lesson.from_json(e[b"lesson"]).id, e[b"replaces"]) for e in entries] == [
        ("id-Corford", b""), ("id-Other", b"id-Corford"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"tenant": "a", "checked": True}, {"tenant": "b"}),
        ({"tenant": "a", "checked": True}, {"tenant": "b", "checked": True}),
        ({"tenant": "a"}, {"tenant": "a", "checked": True}),
    ],
)
async def test_otherwise_the_first_answer_stays(quiet: Rig, first: dict[str, Any], second: dict[str, Any]) -> None:
    await submit(quiet, example("Corford", **first))

    asked = "Who is the mayor of Corford?"
    answer = await submit(quiet, example("Other", question=asked, answer="It is Boris.", **second))

    assert (answer.accepted, dict(answer.refused)) == (0, {"contradiction": 1})


def mayors(*towns: str, name: str, tenant: str, checked: bool = False) -> list[pb.TrainingExample]:
    return [
        example(f"{tenant}-{town}", question=f"Who is the mayor of {town}?", answer=f"The mayor of {town} is {name}.",
                tenant=tenant, checked=checked)
        for town in towns
    ]  # fmt: skip


TOWNS = ("Corford", "Beldale", "Ashwick", "Galmoor", "Fendale", "Hulquay", "Mirnook", "Norwick")


@pytest.mark.parametrize("wrong_first", [False, True])
async def test_a_tenant_that_checked_answers_contradict_often_is_distrusted(quiet: Rig, wrong_first: bool) -> None:
    right = mayors(*TOWNS, name="Ada", tenant="quiet", checked=True)
    wrong = mayors(*TOWNS, name="Boris", tenant="loud")
    for examples in (wrong, right) if wrong_first else (right, wrong):
        await submit(quiet, *examples)

    more = {
        tenant: await submit(quiet, *mayors("Quenora", name=tenant, tenant=tenant, checked=checked))
        for tenant, checked in (("loud", False), ("other", False))
    }
    checked = await submit(quiet, *mayors("Rasmoor", name="Ada", tenant="loud", checked=True))

    assert (more["loud"].accepted, dict(more["loud"].refused)) == (0, {"distrusted": 1})
    assert (more["other"].accepted, checked.accepted) == (1, 1)
    learner = await quiet.stub.GetLearner(pb.GetLearnerRequest(), timeout=5)
    assert list(learner.distrusted_tenants) == ["loud"]


async def test_a_tenant_that_is_distrusted_is_trusted_again_when_it_is_right(quiet: Rig) -> None:
    await submit(quiet, *mayors(*TOWNS, "Quenora", "Rasmoor", name="Ada", tenant="quiet", checked=True))
    await submit(quiet, *mayors(*TOWNS, name="Boris", tenant="loud"))
    others = tuple(f"{a}{b}" for a in ("Pel", "Sol", "Kes") for b in ("cott", "grim", "wick"))
    await submit(quiet, *mayors(*others, name="Ada", tenant="quiet", checked=True))

    await submit(quiet, *mayors(*others, name="Ada", tenant="loud"))

    learner = await quiet.stub.GetLearner(pb.GetLearnerRequest(), timeout=5)
    assert list(learner.distrusted_tenants) == []
    assert (await submit(quiet, *mayors("Galnook", name="Clara", tenant="loud"))).accepted == 1


async def test_the_same_contradiction_again_and_other_words_for_the_same_count_for_nothing(quiet: Rig) -> None:
    await submit(quiet, *mayors(*TOWNS, name="Ada", tenant="quiet", checked=True))
    for _ in range(9):
        await submit(quiet, *mayors("Corford", name="Boris", tenant="loud"))
    asked = [f"Who is the mayor of {town}?" for town in TOWNS]
    await submit(quiet, *(example(f"s{q}", question=q, answer="That is Ada, I think.", tenant="other") for q in asked))
    await submit(quiet, *(example(f"n{q}", question=q, answer="I do not know.", tenant="vague") for q in asked))

    learner = await quiet.stub.GetLearner(pb.GetLearnerRequest(), timeout=5)
    assert list(learner.distrusted_tenants) == []


async def test_contradictions_drive_nothing_out_that_is_known(quiet: Rig, empty_redis: RedisProcess) -> None:
    await submit(quiet, *mayors(*TOWNS, name="Ada", tenant="quiet", checked=True))
    known = empty_redis.client.zrange(KEYS.known, 0, -1)

    await submit(quiet, *mayors(*TOWNS, name="Boris", tenant="loud"))

    assert empty_redis.client.zrange(KEYS.known, 0, -1) == known


@pytest.mark.parametrize(
    ("question", "answer", "claims"),
    [
        ("Who is the mayor of Corford?", "The mayor of Corford is Ada the baker.", ["ada"]),
        ("Who is the mayor of Corford?", "Ada.", ["ada"]),
        ("How many?", "about 42 of them", ["42"]),
        ("How many?", "3 of the ships are here", ["3"]),
        ("Why?", "Because it is so in this town.", []),
    ],
)
def test_what_an_answer_names_that_its_question_does_not(question: str, answer: str, claims: list[str]) -> None:
    assert Lesson("a", 0, "t", "", (Turn("user", question),), answer).claims == claims


async def test_tenants_that_do_not_consent_are_refused_by_reason(environment: dict[str, str]) -> None:
    await asyncio.to_thread(Path(environment["HIVEMIND_CONFIG"]).write_text, "[tenants.shy]\ntraining = false\n")
    async with trainer({**environment, "HIVEMIND_LEARN": "false"}) as rig:
        answer = await submit(rig, example("Corford", tenant="shy"), example("Beldale", tenant="open"))

    assert (answer.accepted, dict(answer.refused)) == (1, {"consent": 1})


async def test_a_caller_that_names_itself_teaches_in_its_own_name(quiet: Rig, empty_redis: RedisProcess) -> None:
    request = pb.SubmitExamplesRequest(examples=[example("Corford", tenant="somebody-else", checked=True)])
    await quiet.stub.SubmitExamples(request, timeout=5, metadata=(("x-hivemind-tenant", "me"),))

    assert [(n.tenant, n.checked) for n in inbox(empty_redis)] == [("me", False)]


async def test_secrets_and_personal_data_never_reach_the_inbox(quiet: Rig, empty_redis: RedisProcess) -> None:
    await submit(quiet, example("x", question="Mail of ada@corford.example?", answer="It is ada@corford.example."))

    (lesson,) = inbox(empty_redis)
    assert (lesson.messages[0].content, lesson.answer) == ("Mail of [EMAIL]?", "It is [EMAIL].")


async def test_examples_of_a_wrong_shape_or_size_are_refused_one_by_one(quiet: Rig) -> None:
    robot, huge = example("Corford"), example("Beldale", answer="x" * 20_000)
    robot.messages[0].role = "robot"
    open_end = example("Galmoor")
    open_end.messages.add(role="assistant", content="Well.")

    answer = await submit(quiet, robot, huge, open_end, example("Fendale"))

    assert (answer.accepted, dict(answer.refused)) == (1, {"shape": 2, "size": 1})


async def test_a_key_twice_has_one_effect_and_for_another_request_it_is_refused(
    quiet: Rig, empty_redis: RedisProcess
) -> None:
    first = await submit(quiet, example("Corford"), idempotency_key="k")
    again = await submit(quiet, example("Corford"), idempotency_key="k")

    assert first == again
    assert len(inbox(empty_redis)) == 1
    reason, _ = await reason_of(submit(quiet, example("Beldale"), idempotency_key="k"))
    assert reason == "IDEMPOTENCY_KEY_REUSED"


async def test_an_old_leader_is_refused_by_its_token(quiet: Rig, empty_redis: RedisProcess) -> None:
    await submit(quiet, example("Corford"), fencing_token=7)

    assert (await reason_of(submit(quiet, example("Beldale"), fencing_token=6)))[0] == "STALE_FENCING_TOKEN"
    drain = quiet.stub.DrainLearner(pb.DrainLearnerRequest(fencing_token=6), timeout=5)
    assert (await reason_of(drain))[0] == "STALE_FENCING_TOKEN"
    assert len(inbox(empty_redis)) == 1


async def test_a_full_inbox_is_overloaded_and_takes_nothing_of_the_call(
    environment: dict[str, str], empty_redis: RedisProcess
) -> None:
    async with trainer({**environment, "HIVEMIND_LEARN": "false", "HIVEMIND_LEARN_INBOX": "2"}) as rig:
        await submit(rig, example("Corford", tenant="a"))
        reason, _ = await reason_of(submit(rig, example("Beldale", tenant="b"), example("Fendale", tenant="c")))

    assert reason == "OVERLOADED"
    assert len(inbox(empty_redis)) == 1


async def test_a_tenant_has_its_share_of_the_inbox_and_no_more(environment: dict[str, str]) -> None:
    async with trainer({**environment, "HIVEMIND_LEARN": "false", "HIVEMIND_LEARN_INBOX": "8"}) as rig:
        flood = await submit(rig, *(example(f"Town{i}", tenant="loud") for i in range(6)))
        other = await submit(rig, example("Corford", tenant="quiet"))

    assert (flood.accepted, dict(flood.refused)) == (4, {"tenant_share": 2})
    assert other.accepted == 1


async def test_a_tenant_that_teaches_alone_is_asked_to_wait_and_nothing_of_it_is_lost(
    environment: dict[str, str],
) -> None:
    async with trainer({**environment, "HIVEMIND_LEARN": "false", "HIVEMIND_LEARN_INBOX": "4"}) as rig:
        await submit(rig, example("Corford", tenant="only"), example("Beldale", tenant="only"))
        reason, _ = await reason_of(submit(rig, example("Fendale", tenant="only")))
        await submit(rig, example("Haddon", tenant="other"))
        late = await submit(rig, example("Fendale", tenant="only"))

    assert reason == "OVERLOADED"
    assert dict(late.refused) == {"tenant_share": 1}


async def test_pause_resume_and_their_repetition(quiet: Rig) -> None:
    paused = await quiet.stub.PauseLearner(pb.PauseLearnerRequest(reason="look", idempotency_key="p"), timeout=5)
    assert (paused.state, paused.note) == (pb.OnlineLearner.PAUSED, "look")

    resumed = await quiet.stub.ResumeLearner(pb.ResumeLearnerRequest(), timeout=5)
    late = await quiet.stub.PauseLearner(pb.PauseLearnerRequest(reason="look", idempotency_key="p"), timeout=5)

    assert resumed.state != pb.OnlineLearner.PAUSED
    assert late.state != pb.OnlineLearner.PAUSED


async def test_a_role_without_a_learner_is_not_found(quiet: Rig) -> None:
    assert (await reason_of(quiet.stub.GetLearner(pb.GetLearnerRequest(role="poet"), timeout=5)))[0] == (
        "NOT_FOUND_RESOURCE"
    )


async def test_redis_killed_right_after_the_answer_has_the_example(tmp_path: Path, registry: ScriptedRegistry) -> None:
    (tmp_path / "redis").mkdir()
    (tmp_path / "home").mkdir()
    with redis_process(tmp_path / "redis") as redis:
        environment = settings_of(
            tmp_path / "home", redis.url, f"127.0.0.1:{registry.port}", HIVEMIND_LEARN="false",
            HIVEMIND_REDIS_TIMEOUT_S="0.5",
        )  # fmt: skip
        async with trainer(environment) as rig:
            await submit(rig, example("Corford"))
            redis.kill()
            assert (await reason_of(submit(rig, example("Beldale"))))[0] == "STORE_UNAVAILABLE"
            await asyncio.to_thread(redis.start)
            assert [n.id for n in inbox(redis)] == ["id-Corford"]
            while True:
                try:
                    again = await submit(rig, example("Corford"), example("Beldale"))
                    break
                except grpc.aio.AioRpcError:
                    continue
    assert (again.accepted, again.duplicates) == (1, 1)
