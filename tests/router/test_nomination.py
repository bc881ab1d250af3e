"""Which answers are nominated for refinement, and what of a conversation is kept."""

import random
from dataclasses import replace

import pytest

from hivemind.servers.common.tokens import PromptSize
from hivemind.servers.common.turn import Turn
from hivemind.servers.router.conversation import Conversation, can_be_kept, redacted
from hivemind.servers.router.json_splice import top_level
from hivemind.servers.router.learning import Learning
from hivemind.servers.router.nomination import Nominator, after_feedback
from hivemind.servers.router.records import Candidate, Record
from hivemind.servers.router.request import Body, Request
from hivemind.servers.router.work import Work

NEVER = Nominator(0.0, random.Random(0))


def record(quality: float | None = 0.9, *, propensity: float = 1.0) -> Record:
    candidates = (
        Candidate("single", "courier", 0, quality),
        Candidate("single", "master", 10, 0.1, rejected_because="dearer"),
    )
    return Record("r1", 0.0, "t1", "", "OPENAI", "auto", candidates=candidates, propensity=propensity, outcome="OK")


def request(raw: bytes = b'{"messages":[]}', **changes: object) -> Request:
    messages = [{"role": "user", "content": [{"type": "text", "text": "Is it"}, {"type": "text", "text": "so?"}]}]
    plain = Request("r1", "t1", "", "OPENAI", "auto", Body(raw, top_level(raw)), PromptSize(1, 1), "", 0, 0, 60)
    return replace(plain, messages=messages, **changes)  # type: ignore[arg-type]


def test_an_answer_that_is_expected_to_be_poor_is_nominated_by_how_poor_it_is() -> None:
    found = NEVER.judge(record(0.2), None)

    assert found is not None
    assert (found.cause, found.value) == ("LOW_CONFIDENCE", pytest.approx(0.8))


def test_answers_that_did_not_agree_are_nominated_even_where_they_are_expected_to_be_good() -> None:
    found = NEVER.judge(record(0.95), 0.4)

    assert found is not None
    assert (found.cause, found.value) == ("DISAGREEMENT", pytest.approx(0.6))


def test_an_explored_answer_is_nominated_as_a_sample() -> None:
    found = NEVER.judge(record(0.9, propensity=0.02), None)

    assert found is not None
    assert found.cause == "SAMPLE"


def test_of_all_other_answers_the_configured_share_is_nominated() -> None:
    nominator = Nominator(0.1, random.Random(7))
    count = sum(nominator.judge(record(None), None) is not None for _ in range(5000))

    assert 400 < count < 600


def test_a_bad_rating_and_a_demonstration_nominate_and_a_good_rating_does_not() -> None:
    bad, right = after_feedback("r1", "rating", -1), after_feedback("r1", "demonstration", "It is 4.")

    assert bad is not None
    assert bad.cause == "NEGATIVE_FEEDBACK"
    assert right is not None
    assert (right.cause, right.demonstration) == ("DEMONSTRATION", "It is 4.")
    assert after_feedback("r1", "rating", 1) is None
    assert after_feedback("r1", "preferred", "a") is None


def test_nothing_but_the_record_is_kept_of_a_tenant_without_consent() -> None:
    work = Work(request(), record(0.1), text="Perhaps.")

    entry = Learning(NEVER, consents=lambda tenant: tenant != "t1").entry(work)

    assert entry.conversation is None
    assert entry.nomination is None
    assert entry.record.nomination == ""


def test_the_record_says_why_its_answer_was_nominated() -> None:
    work = Work(request(), record(0.1), text="Perhaps.")

    entry = Learning(NEVER, consents=lambda _: True).entry(work)

    assert entry.record.nomination == "LOW_CONFIDENCE"
    assert entry.conversation is not None
    assert entry.conversation.messages == (Turn("user", "Is it\nso?"),)


@pytest.mark.parametrize(
    "unfit",
    [request(tools=True), request(images=True), request(b'{"x":"' + b"y" * 70_000 + b'"}')],
    ids=["tools", "images", "too large"],
)
def test_what_cannot_be_learnt_from_is_not_kept(unfit: Request) -> None:
    assert can_be_kept(request(), "Yes.")
    assert not can_be_kept(request(), " ")
    assert not can_be_kept(unfit, "Yes.")


def test_secrets_and_personal_data_leave_the_whole_conversation_under_one_numbering() -> None:
    talk = Conversation(
        "r1", "t1", "", "courier", "", (Turn("user", "Write to ann@example.org"),), "To ann@example.org.", ("bo@b.io",)
    )

    found = redacted(talk)

    assert found.messages[0].content == "Write to [EMAIL]"
    assert found.draft == "To [EMAIL]."
    assert found.alternatives == ("[EMAIL_2]",)
