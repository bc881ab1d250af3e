"""Which adapter answers, and on which replica."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from hivemind.servers.common.assignment import Split
from hivemind.servers.common.catalogue import Endpoint, Model
from hivemind.servers.common.errors import MeshError
from hivemind.servers.common.tokens import PromptSize
from hivemind.servers.router.adapters import AdapterBook, RoleAdapters, answered_with
from hivemind.servers.router.outcomes import outcomes_of
from hivemind.servers.router.records import Call, Record
from hivemind.servers.router.request import Body, Request

ONE, TWO = Endpoint(0, "http://127.0.0.1:1/v1", "m"), Endpoint(1, "http://127.0.0.1:2/v1", "m")
COURIER = Model("courier", (ONE, TWO), role="implementer")
V1, V2 = "implementer-v000001", "implementer-v000002"


def book(held: dict[str, set[str]], *, champion: str = V1, share: float = 0.0) -> AdapterBook:
    made = AdapterBook()
    split = Split("implementer", champion, {V2: share} if share else {})
    holds = {address: frozenset(names) for address, names in held.items()}
    made.replace({"implementer": RoleAdapters(split, registered=(V2, V1), held=holds)})
    return made


def request(model: str = "auto", *, session: str = "", number: int = 0) -> Request:
    body = Body(b"{}", [])
    return Request(f"r{number}", "t1", session, "OPENAI", model, body, PromptSize(1, 1), "", 0, 0, 60)


BOTH = {ONE.host: {V1, V2}, TWO.host: {V1, V2}}


def test_the_champion_answers_where_nobody_challenges() -> None:
    choice = book(BOTH).choose(COURIER, request(), (ONE, TWO))

    assert (choice.adapter, choice.note) == (V1, "")
    assert list(choice.endpoints) == [ONE, TWO]


def test_a_challenger_gets_its_share_and_a_session_always_the_same() -> None:
    chooser = book(BOTH, share=0.25)
    seen = Counter(chooser.choose(COURIER, request(number=i), (ONE,)).adapter for i in range(4000))
    one_session = {chooser.choose(COURIER, request(session="s1", number=i), (ONE,)).adapter for i in range(50)}

    assert 900 < seen[V2] < 1100
    assert len(one_session) == 1


def test_only_replicas_that_hold_the_adapter_are_asked() -> None:
    choice = book({ONE.host: set(), TWO.host: {V1}}).choose(COURIER, request(), (ONE, TWO))

    assert list(choice.endpoints) == [TWO]


def test_a_challenger_that_nobody_holds_leaves_its_requests_to_the_champion_and_counts_for_nothing() -> None:
    chooser = book({ONE.host: {V1}}, share=0.5)
    choices = [chooser.choose(COURIER, request(number=i), (ONE,)) for i in range(100)]
    fallen = [c for c in choices if c.note]

    assert all(c.adapter == V1 for c in choices)
    assert 30 < len(fallen) < 70
    assert all(V2 in c.note and c.unit == "" for c in fallen)


def test_the_base_model_answers_where_no_replica_holds_the_champion() -> None:
    choice = book({}).choose(COURIER, request(), (ONE, TWO))

    assert choice.adapter == ""
    assert "the base model answered" in choice.note
    assert list(choice.endpoints) == [ONE, TWO]


def test_a_named_adapter_is_never_replaced() -> None:
    chooser = book({ONE.host: {V1}})

    assert chooser.choose(COURIER, request(f"courier:{V1}"), (ONE, TWO)).adapter == V1
    assert chooser.choose(COURIER, request("courier:base"), (ONE, TWO)).adapter == ""
    with pytest.raises(MeshError) as refused:
        chooser.choose(COURIER, request(f"courier:{V2}"), (ONE, TWO))
    assert refused.value.reason == "UPSTREAM_FAILED"


def test_a_server_that_loads_on_demand_is_asked_for_an_adapter_that_it_does_not_hold_yet() -> None:
    embedded = replace(COURIER, adapters="embedded")

    assert book({}).choose(embedded, request(f"courier:{V2}"), (ONE, TWO)).adapter == V2


def test_lorax_is_asked_for_an_adapter_by_its_directory_and_answers_with_it() -> None:
    known = AdapterBook(Path("/srv/adapters"))
    lorax = replace(COURIER, adapters="lorax")

    assert known.name_at(lorax, ONE, V1) == "/srv/adapters/implementer/v000001"
    assert known.name_at(replace(COURIER, adapters="vllm"), ONE, V1) == V1
    assert known.name_at(lorax, ONE, "") == "m"
    assert answered_with(V1, "/srv/adapters/implementer/v000001") == V1
    assert answered_with(V1, V2) == V2
    assert answered_with(V1, "") == V1


def test_only_what_the_model_server_did_counts_as_an_outcome() -> None:
    call = Call("courier", "0:127.0.0.1:1", 0.0, adapter=V2, adapter_role="implementer", unit="s1", latency_s=0.5)
    record = Record("r1", 0.0, "t1", "s1", "OPENAI", "auto")
    record.calls = [
        replace(call, error="the client left"),
        replace(call, error="it answered 500", failed=True),
        call,
        Call("master", "0:127.0.0.1:9", 0.0),
    ]

    found = outcomes_of(record)

    assert [(o.request_id, o.adapter_id, o.failed, o.latency_s, o.unit) for o in found] == [
        ("r1", V2, True, None, "s1"),
        ("r1.1", V2, False, 0.5, "s1"),
    ]


def test_challengers_with_traffic_are_tried_beside_the_champion_as_shadows_are() -> None:
    role = RoleAdapters(Split("implementer", "", {"implementer-v000002": 0.05}), shadows=("implementer-v000003",))

    assert role.tried == ("implementer-v000003", "implementer-v000002")
