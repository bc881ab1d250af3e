"""The first StrategySelector: availability, context length, price and hints."""

from typing import Any

import pytest

from hivemind.servers.common.catalogue import Endpoint, Model
from hivemind.servers.common.errors import MeshError
from hivemind.servers.router.request import Body, Hints, Request
from hivemind.servers.router.selector import ModelState, decide
from hivemind.servers.router.tokens import PromptSize


def state(alias: str, *, price: float = 0.0, available: bool = True, **fields: Any) -> ModelState:
    latency = fields.pop("latency_s", None)
    model = Model(alias, (Endpoint(0, "http://127.0.0.1:1/v1", alias),), price, price, auto=True, **fields)
    return ModelState(model, available, latency)


def request(model: str = "auto", *, tokens: int = 10, **fields: Any) -> Request:
    hints = Hints(**fields.pop("hints", {}))
    return Request(
        "id", "default", "", "OPENAI", model, Body(b"{}", []), PromptSize(4 * tokens, tokens), "", 0.0, 0.0, 60.0,
        hints=hints, **fields,
    )  # fmt: skip


STATES = {"courier": state("courier", context_tokens=100), "master": state("master", price=5.0, images=True)}


def test_auto_takes_the_cheapest_that_fits() -> None:
    decision = decide(request(), STATES, dial=0.5)

    assert [o.model.alias for o in decision.options] == ["courier", "master"]
    assert "cheapest" in decision.reason
    assert decision.candidates[0].rejected_because == ""


@pytest.mark.parametrize(
    "made",
    [
        request(tokens=200),
        request(hints={"difficulty": 0.9}),
        request(hints={"quality_dial": 1.0}),
        request(images=True),
    ],
)
def test_auto_takes_the_stronger_one_where_the_request_asks_for_it(made: Request) -> None:
    assert decide(made, STATES, dial=0.5).chosen.model.alias == "master"


def test_auto_prefers_what_is_available() -> None:
    states = {**STATES, "courier": state("courier", available=False)}

    assert decide(request(), states, dial=0.5).chosen.model.alias == "master"


def test_a_named_alias_is_never_replaced() -> None:
    states = {**STATES, "master": state("master", price=5.0, available=False)}

    assert [o.model.alias for o in decide(request("master"), states, dial=0.0).options] == ["master"]


def test_without_a_master_the_decision_says_so() -> None:
    decision = decide(request(), {"courier": STATES["courier"]}, dial=0.5)

    assert decision.degraded == ("no master model is configured",)


@pytest.mark.parametrize(
    ("made", "reason", "field"),
    [
        (request("nonsense"), "UNKNOWN_MODEL", "model"),
        (request("oracle"), "UNKNOWN_MODEL", "model"),
        (request("courier:x-v000001"), "UNKNOWN_MODEL", "model"),
        (request("courier", tokens=101), "CONTEXT_LENGTH_EXCEEDED", "messages"),
        (request("master", hints={"max_cost_micros": 1}), "HINTS_NOT_MET", "hints.max_cost_micros"),
        (request(hints={"strategy": "x"}), "UNKNOWN_STRATEGY", "hints.strategy"),
        (request(hints={"strategy": "debate"}), "HINTS_NOT_MET", "hints.strategy"),
        (request("courier", images=True), "INVALID_FIELD", "messages"),
    ],
)
def test_what_cannot_be_met_is_refused_with_the_field(made: Request, reason: str, field: str) -> None:
    with pytest.raises(MeshError) as refused:
        decide(made, STATES, dial=0.5)

    assert refused.value.reason == reason
    assert refused.value.violations[0].field == field


def test_a_model_that_is_too_slow_is_passed_over() -> None:
    states = {**STATES, "courier": state("courier", latency_s=9.0)}

    decision = decide(request(hints={"max_latency_s": 1.0}), states, dial=0.5)

    assert decision.chosen.model.alias == "master"
    assert "max_latency" in decision.candidates[-1].rejected_because


def test_the_upper_cost_counts_every_byte_as_a_token_and_the_longest_answer() -> None:
    decision = decide(request("master", max_tokens=50, choices=2), STATES, dial=0.5)

    assert decision.chosen.cost_micros == 40 * 5 + 2 * 50 * 5 + 1
