"""Budgets over two Router replicas, counted by what the scripted upstream received."""

import os
import signal

import httpx
import pytest

from tests.support.load import MESSAGES, run_load
from tests.support.mesh import RunningMesh, Upstream
from tests.support.scripted_upstream import USAGE
from tests.support.waiting import until

COST_MICROS = int(USAGE["prompt_tokens"] * 2.5 + USAGE["completion_tokens"] * 10)


def set_config(client: httpx.Client, **fields: object) -> None:
    """Changes the configuration, once Envoy has found the Governor again where a test had stopped it."""

    def answered() -> httpx.Response | None:
        answer = client.post("/api/config/governor", json=fields)
        return None if answer.status_code == 503 else answer

    answer = until(answered, what="the Governor answers")
    assert answer is not None
    assert answer.status_code == 200, answer.text


def ask(client: httpx.Client, tenant: str, model: str = "ok", **fields: object) -> httpx.Response:
    body = {"model": model, "messages": MESSAGES, **fields}
    return client.post("/v1/chat/completions", json=body, headers={"x-hivemind-tenant": tenant})


@pytest.mark.parametrize("stream", [False, True])
async def test_a_budget_of_a_dollar_is_never_exceeded_and_nearly_all_usable(
    mesh: RunningMesh, client: httpx.Client, upstream: Upstream, stream: bool
) -> None:
    mesh.wait_ready()
    tenant = f"dollar-{stream}".lower()
    set_config(client, budgets=[{"tenant": tenant, "period": "DAY", "limit_micros": 1_000_000}])
    upstream.forget()

    load = await run_load(
        mesh.base_url, model="ok", seconds=12, concurrency=16, pause_s=0.0, stream=stream,
        headers={"x-hivemind-tenant": tenant},
    )  # fmt: skip

    spent = COST_MICROS * len(upstream.seen())
    assert set(load.outcomes) == {200, 429}, (load.outcomes, load.failures[:2])
    assert 950_000 <= spent <= 1_000_000, spent

    def booked() -> bool:
        states = client.get("/api/spend").json()["budgets"]
        mine = next(s for s in states if s["budget"]["tenant"] == tenant)
        return int(mine["spent_micros"]) == spent and int(mine["reserved_micros"]) == 0

    assert until(booked, within_s=10, what="the Governor has booked it all and holds nothing back")


def test_a_named_alias_without_budget_is_a_429_with_the_time_until_it_resets(client: httpx.Client) -> None:
    set_config(client, budgets=[{"tenant": "broke", "period": "MONTH", "limit_micros": 0}])

    def refused() -> httpx.Response | None:
        answer = ask(client, "broke")
        return answer if answer.status_code == 429 else None

    answer = until(refused, what="both Routers know the budget")

    assert answer.json()["error"]["code"] == "insufficient_quota"
    assert answer.json()["error"]["reason"] == "BUDGET_EXHAUSTED"
    assert 0 < int(answer.headers["retry-after"]) <= 31 * 86400
    rest = client.post("/api/complete", json={"messages": MESSAGES, "model": "ok", "tenant": "broke"})
    assert rest.status_code == 429
    assert int(rest.headers["retry-after"]) > 0
    assert rest.json()["details"][0]["reason"] == "BUDGET_EXHAUSTED"


def test_what_costs_nothing_needs_no_budget(client: httpx.Client) -> None:
    set_config(client, budgets=[{"tenant": "poor", "period": "DAY", "limit_micros": 0}])

    assert ask(client, "poor", "odd_finish").status_code == 200
    assert ask(client, "poor", "auto", max_tokens=5).status_code == 200


def test_an_answer_is_capped_where_a_budget_binds_and_the_client_set_no_limit(
    client: httpx.Client, upstream: Upstream
) -> None:
    set_config(client, budgets=[{"tenant": "capped", "period": "DAY", "limit_micros": 10_000_000}])

    def capped() -> bool:
        upstream.forget()
        assert ask(client, "capped").status_code == 200
        return b'"max_completion_tokens":100' in upstream.seen()[0]["body"]

    assert until(capped, what="the cap")
    upstream.forget()
    ask(client, "capped", max_tokens=7)
    ask(client, "free-of-budgets")
    assert [b"max_completion_tokens" in s["body"] for s in upstream.seen()] == [False, False]


def test_a_rate_limits_requests_with_the_time_until_the_next(client: httpx.Client) -> None:
    set_config(client, rates=[{"tenant": "hasty", "requests_per_minute": 60, "burst": 2}])

    def limited() -> httpx.Response | None:
        answers = [ask(client, "hasty", "odd_finish") for _ in range(6)]
        return next((a for a in answers if a.status_code == 429), None)

    answer = until(limited, what="the rate holds")
    assert answer.json()["error"]["reason"] == "RATE_LIMITED"
    assert int(answer.headers["retry-after"]) >= 1
    assert ask(client, "patient", "odd_finish").status_code == 200


def test_budgets_fail_closed_while_the_governor_is_gone_and_can_be_told_not_to(
    mesh: RunningMesh, client: httpx.Client
) -> None:
    mesh.wait_ready()
    set_config(client, budgets=[{"tenant": "guarded", "period": "DAY", "limit_micros": 0}])
    until(lambda: {ask(client, "guarded").status_code for _ in range(8)} == {429}, what="both Routers know the budget")
    set_config(client, budgets=[{"tenant": "guarded", "period": "DAY", "limit_micros": 100_000_000}])
    until(lambda: {ask(client, "guarded").status_code for _ in range(8)} == {200}, what="both have money again")
    governor = mesh.server("governor")[0]

    def stopped_answers(tenant: str) -> set[int]:
        os.kill(governor.pid, signal.SIGSTOP)
        try:
            return {ask(client, tenant, max_tokens=300_000).status_code for _ in range(4)}
        finally:
            os.kill(governor.pid, signal.SIGCONT)

    assert stopped_answers("guarded") == {503}
    mesh.wait_ready()
    set_config(client, budget_fail_open=True)
    until(lambda: stopped_answers("guarded") == {200}, within_s=30, what="it fails open")
    mesh.wait_ready()
    set_config(client, budget_fail_open=False)
