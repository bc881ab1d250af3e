"""Worked examples in requests: the Router's core over a model server that only notes what it is asked."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import orjson
import pytest
from prometheus_client import CollectorRegistry

from hivemind.servers.common.catalogue import Catalogue, Endpoint, Model, Policy
from hivemind.servers.common.errors import MeshError
from hivemind.servers.common.spend import BudgetBook, BudgetView
from hivemind.servers.router.completion import Completions
from hivemind.servers.router.example_book import ExampleBook
from hivemind.servers.router.example_index import ExampleIndex, Exemplar, flat_index
from hivemind.servers.router.fleet import Fleet
from hivemind.servers.router.metrics import RouterMetrics
from hivemind.servers.router.openai_request import read_chat_request
from hivemind.servers.router.recall import Recall
from hivemind.servers.router.recorder import Entry
from hivemind.servers.router.records import Record
from hivemind.servers.router.request import Hints, Request
from hivemind.servers.router.work import Answer
from tests.common.test_spend import Governor
from tests.router.test_example_index import ASKED, LIKENESS, MAYOR

COURIER = Model(
    "courier", (Endpoint(0, "http://127.0.0.1:1/v1", "m"),), context_tokens=2048, max_output_tokens=256, auto=True
)
PRICED = replace(COURIER, input_price=1.0, output_price=2.0)
MASTER = replace(COURIER, alias="master", input_price=5.0, output_price=20.0, context_tokens=100_000)
ANSWER = "The mayor of Beldale is Ada the baker."
SHOW = {"show": Policy("show", examples=2), "hide": Policy("hide")}


@dataclass
class Reply:
    """A whole answer of a model server."""

    status: int = 200
    said: str = "Ada."

    def header(self, name: str) -> str:
        return ""

    async def read(self, limit: int, *, within_s: float) -> bytes:
        message = {"role": "assistant", "content": self.said}
        logprobs = {"content": [{"logprob": -3.0}]}
        choice = {"message": message, "finish_reason": "stop", "logprobs": logprobs}
        return orjson.dumps({"model": "m", "choices": [choice]})

    async def next(self) -> bytes:
        return b""

    def fail(self, error: Exception) -> None:
        pass

    def close(self) -> None:
        pass


@dataclass
class Noting:
    """Implements ports.Upstream: notes every body."""

    bodies: list[dict[str, Any]] = field(default_factory=list)

    async def post(
        self,
        endpoint: Endpoint,
        path: str,
        body: bytes,
        headers: Mapping[str, str],
        *,
        connect_s: float,
        answer_s: float,
    ) -> Reply:
        self.bodies.append(orjson.loads(body))
        return Reply()


@dataclass
class Free:
    """Implements completion.Governance."""

    dial: float = 0.5

    def admit(self, tenant: str) -> None:
        pass

    def tenant_label(self, tenant: str) -> str:
        return tenant


class Kept:
    def __init__(self) -> None:
        self.records: list[Record] = []

    def add(self, entry: Entry) -> None:
        self.records.append(entry.record)


class Rig:
    """A Router's core with one example of tenant t1."""

    def __init__(self, *models: Model, limit: int | None = None, refusing: str = "") -> None:
        self.upstream, self.kept, self.book = Noting(), Kept(), ExampleBook(time.monotonic)
        index = ExampleIndex(LIKENESS, flat_index())
        index.add(Exemplar("p1", "t1", MAYOR, ANSWER))
        index.add(Exemplar("p2", "t1", "Tell me the name of the mayor of Beldale.", ANSWER))
        self.book.put(index)
        catalogue = Catalogue({m.alias: m for m in models or (COURIER,)}, frozenset({refusing}), SHOW)
        self.registry = CollectorRegistry()
        metrics = RouterMetrics(self.registry)
        tenants = frozenset({"t1"} if limit is not None else ())
        view = BudgetView(tenants=tenants, known=True, fresh=True)
        recall = Recall(self.book, lambda tenant: tenant not in catalogue.tenants_without_training, metrics)
        self.governor = Governor(limit or 0)
        self.completions = Completions(
            fleet=Fleet(catalogue, time.monotonic), upstream=self.upstream, recorder=self.kept,
            budgets=BudgetBook(self.governor, view=lambda: view, clock=time.monotonic),
            entry=lambda work: Entry(work.record), governance=Free(), metrics=metrics, recall=recall,
        )  # fmt: skip

    async def ask(
        self, text: str = ASKED, *, tenant: str = "t1", policy: str = "show", hints: Hints | None = None, **body: Any
    ) -> Answer:
        raw = orjson.dumps({"messages": [{"role": "user", "content": text}], "max_tokens": 64, **body})
        chat, now = read_chat_request(raw), time.monotonic()
        return await self.completions.plain(Request(
            "r1", tenant, "", "OPENAI", chat.model, chat.body, chat.prompt, chat.prompt_sha256,
            arrived=now, created=time.time(), deadline=now + 30,
            max_tokens=chat.max_tokens, messages=chat.messages, tools=chat.tools, images=chat.images,
            single_only=chat.single_only or chat.images, hints=hints or Hints(), policy=policy,
        ))  # fmt: skip

    @property
    def asked(self) -> list[dict[str, Any]]:
        """The messages of the last call."""
        return list(self.upstream.bodies[-1]["messages"])

    @property
    def record(self) -> Record:
        return self.kept.records[-1]


async def test_the_courier_sees_the_nearest_example_last_and_the_question_as_it_was() -> None:
    rig = Rig()

    answer = await rig.ask(temperature=0)

    system, question = rig.asked
    assert system["role"] == "system"
    assert system["content"].count(ANSWER) == 2
    assert question == {"role": "user", "content": ASKED}
    assert rig.upstream.bodies[-1]["temperature"] == 0
    assert answer.work.request.messages == [question]  # what is kept and learnt from is the client's own


async def test_the_decision_and_the_call_name_what_was_shown() -> None:
    rig = Rig()

    await rig.ask()

    record = rig.record
    ids = [e.platinum_id for e in record.examples]
    assert sorted(ids) == ["p1", "p2"]
    assert record.calls[0].examples == tuple(ids)
    assert record.calls[0].prompt_version.startswith("examples-")
    assert record.reason.endswith(f"it is shown 2 platinum examples {', '.join(ids)}.")
    assert rig.registry.get_sample_value("hivemind_examples_shown_total") == 2
    assert Record.from_json(orjson.loads(orjson.dumps(record))).examples == record.examples


async def test_only_the_meshs_own_engine_is_told_that_repeating_is_no_fault() -> None:
    own, foreign = Rig(replace(COURIER, adapters="embedded")), Rig()

    for rig in (own, foreign):
        await rig.ask()
    await own.ask(repeat_penalty=1.3)
    await own.ask(policy="hide")

    assert [body.get("repeat_penalty") for body in own.upstream.bodies] == [1.0, 1.3, None]
    assert "repeat_penalty" not in foreign.upstream.bodies[0]


async def test_instructions_of_the_client_stay_and_come_first() -> None:
    rig = Rig()
    mine = {"role": "system", "content": "Answer in one word."}

    await rig.ask(messages=[mine, {"role": "user", "content": ASKED}])

    assert [m["role"] for m in rig.asked] == ["system", "user"]
    assert rig.asked[0]["content"].startswith("Answer in one word.\n\nAnswered before")


IMAGE = {"type": "image_url", "image_url": {"url": "data:"}}
NOT_PLAIN: list[dict[str, Any]] = [
    {"response_format": {"type": "json_object"}},
    {"tools": [{"type": "function", "function": {"name": "f"}}], "model": "courier"},
    {"n": 2},
    {"logprobs": True},
    {"model": "courier:base"},
    {"messages": [{"role": "user", "content": ASKED}, {"role": "assistant", "content": "It"}]},
    {"messages": [
        {"role": "user", "content": "Hi"}, {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
        {"role": "tool", "content": "x", "tool_call_id": "1"}, {"role": "user", "content": ASKED},
    ]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": ASKED}, IMAGE]}]},
]  # fmt: skip


@pytest.mark.parametrize("body", NOT_PLAIN)
async def test_what_is_no_plain_conversation_is_left_alone(body: dict[str, Any]) -> None:
    rig = Rig(replace(COURIER, images=True, context_tokens=8192))

    await rig.ask(**body)

    sent = {"messages": [{"role": "user", "content": ASKED}], **body}["messages"]
    assert rig.asked == sent
    assert rig.record.examples == ()


@pytest.mark.parametrize(
    ("tenant", "policy", "refusing"),
    [("t2", "show", ""), ("default", "show", ""), ("t1", "hide", ""), ("t1", "", ""), ("t1", "show", "t1")],
)
async def test_other_tenants_other_policies_and_tenants_that_do_not_consent_see_nothing(
    tenant: str, policy: str, refusing: str
) -> None:
    rig = Rig(refusing=refusing)

    await rig.ask(tenant=tenant, policy=policy)

    assert ANSWER not in str(rig.upstream.bodies)
    assert rig.record.examples == ()


async def test_a_missing_index_costs_a_note_and_no_answer() -> None:
    rig = Rig()
    rig.book.drop("the library is away")

    await rig.ask()

    assert "no examples were shown: the library is away" in rig.record.degraded


async def test_no_more_is_shown_than_leaves_room_for_the_longest_answer() -> None:
    needed = (await Rig().ask(max_tokens=64)).work.asked("courier").prompt.upper + 64

    counts = {}
    for context in (needed, needed - 1, needed // 2):
        rig = Rig(replace(COURIER, context_tokens=context))
        work = (await rig.ask(max_tokens=64)).work
        counts[context] = len(rig.record.examples)
        assert work.asked("courier").prompt.upper + 64 <= context

    assert list(counts.values()) == [2, 1, 0]


async def test_the_money_for_the_examples_is_set_aside_and_what_they_cost_is_booked() -> None:
    plain, shown = Rig(PRICED, limit=1_000_000), Rig(PRICED, limit=1_000_000)

    without = (await plain.ask(policy="hide")).work
    work = (await shown.ask()).work

    assert work.shown is not None
    assert without.option is not None
    assert work.option is not None
    assert work.option.cost_micros == without.option.cost_micros + work.shown.extra_micros
    assert work.record.candidates[0].cost_micros == work.option.cost_micros
    assert without.record.cost_micros < work.record.cost_micros <= work.option.cost_micros


async def test_a_budget_that_reaches_for_the_request_alone_has_it_answered_without_examples() -> None:
    measured = (await Rig(PRICED, limit=1_000_000).ask(policy="hide")).work
    assert measured.option is not None
    rig = Rig(PRICED, limit=measured.option.cost_micros + 1)

    await rig.ask()

    assert rig.record.outcome == "OK"
    assert ANSWER not in str(rig.upstream.bodies)
    assert (rig.record.examples, rig.record.calls[0].examples) == ((), ())
    assert any("no examples were shown" in note for note in rig.record.degraded)
    assert "platinum" not in rig.record.reason
    with pytest.raises(MeshError, match="BUDGET_EXHAUSTED"):
        await Rig(PRICED, limit=1).ask()


async def test_the_clients_own_limit_on_cost_holds_with_examples() -> None:
    measured = (await Rig(PRICED).ask(policy="hide")).work
    assert measured.option is not None
    rig = Rig(PRICED)

    await rig.ask(hints=Hints(max_cost_micros=measured.option.cost_micros))

    assert (rig.record.outcome, rig.record.examples) == ("OK", ())


async def test_of_a_cascade_only_the_courier_sees_examples() -> None:
    rig = Rig(COURIER, MASTER)

    await rig.ask(hints=Hints(strategy="cascade"))

    first, second = rig.upstream.bodies
    assert ANSWER in str(first)
    assert second["messages"] == [{"role": "user", "content": ASKED}]
    assert [bool(c.examples) for c in rig.record.calls] == [True, False]
