"""FAULTS 11 to 15, 20 and 21 for strategies of several calls, through Envoy: what model servers do to inner calls."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.mesh.test_strategies import MANY, ask, chunks_of, record_of, words_of
from tests.support.mesh import RunningMesh, Upstream, courier_and_master, running_mesh
from tests.support.scripted_upstream import USAGE
from tests.support.waiting import until

COST_MICROS = int(USAGE["prompt_tokens"] * 2.5 + USAGE["completion_tokens"] * 10)


@pytest.mark.parametrize("strategy", MANY)
@pytest.mark.parametrize("failing", ["refused", "500", "429", "hang"])
def test_another_endpoint_answers_each_inner_call(client: httpx.Client, strategy: str, failing: str) -> None:
    answer = ask(client, f"panel_rescued_{failing}", strategy)

    assert answer.status_code == 200, answer.text
    assert "orty-two" in answer.text or "42" in answer.text
    record = record_of(client, answer.headers["x-request-id"])
    assert record["outcome"] == "OK"
    # whoever waits for the hanging endpoint may be cut off as a straggler, once enough have answered
    assert [d for d in record["degraded"] if failing != "hang" or "too slow" not in d] == []


@pytest.mark.parametrize("strategy", MANY)
@pytest.mark.parametrize(
    ("alias", "word"),
    [("error_500", "500"), ("rate_limited", "429"), ("refused", "refuses"), ("hang_both", "time")],
)
def test_a_named_model_whose_calls_all_fail_is_a_502_with_the_reason(
    client: httpx.Client, strategy: str, alias: str, word: str
) -> None:
    answer = ask(client, alias, strategy)

    assert answer.status_code == 502, answer.text
    error = answer.json()["error"]
    assert error["reason"] == "UPSTREAM_FAILED"
    assert word in error["message"] or "rests after failures" in error["message"], error


@pytest.mark.parametrize(
    ("alias", "word"),
    [("truncated", "middle"), ("html", "JSON"), ("empty_choices", "nothing"), ("null_content", "nothing")],
)
def test_inner_answers_that_cannot_be_used_are_a_502_that_says_so(client: httpx.Client, alias: str, word: str) -> None:
    answer = ask(client, alias, "vote")

    assert answer.status_code == 502, answer.text
    assert word in answer.json()["error"]["message"]


@pytest.mark.parametrize("strategy", ["vote", "committee"])
@pytest.mark.parametrize("alias", ["panel_truncated", "panel_html", "panel_empty", "panel_null"])
def test_one_inner_answer_that_cannot_be_used_costs_no_answer(client: httpx.Client, alias: str, strategy: str) -> None:
    answer = ask(client, alias, strategy)

    assert answer.status_code == 200, answer.text
    calls = record_of(client, answer.headers["x-request-id"])["calls"]
    told = answer.json()["hivemind"]["degraded"]
    assert any(c["error"] for c in calls) or any("answered nothing" in d for d in told)


@pytest.mark.parametrize("strategy", ["vote", "committee"])
@pytest.mark.parametrize("stream", [False, True])
def test_for_auto_one_call_answers_where_a_strategy_fails(
    tmp_path_factory: pytest.TempPathFactory, upstream: Upstream, strategy: str, stream: bool
) -> None:
    config = courier_and_master(upstream, courier="only_plain").replace('model = "ok"', 'model = "only_plain"')
    with running_mesh(tmp_path_factory.mktemp("standby"), config) as mesh, mesh.client() as client:
        answer = ask(client, "auto", strategy, stream=stream, tenant="picky")
        record = record_of(client, answer.headers["x-request-id"])
        saved = int(record["master_cost_micros"]) - int(record["cost_micros"])
        until(lambda: saved_by(client, tenant="picky") == saved, what="the savings are booked, once")

    assert answer.status_code == 200, answer.text
    about = chunks_of(answer)[-1]["hivemind"] if stream else answer.json()["hivemind"]
    text = "".join(words_of(chunks_of(answer))) if stream else answer.json()["choices"][0]["message"]["content"]
    assert text.strip() == "Paris is the capital of France."
    assert about["strategy"] == strategy == record["decision"]["strategy"]
    assert any("one call answered instead" in d and "answered nothing" in d for d in about["degraded"])


def saved_by(client: httpx.Client, *, tenant: str) -> int:
    rows = [r for r in client.get("/api/spend").json()["rows"] if r["tenant"] == tenant]
    return sum(int(r["master_cost_micros"]) - int(r["cost_micros"]) for r in rows)


def test_a_wrong_proposer_is_outvoted(client: httpx.Client, upstream: Upstream) -> None:
    upstream.forget()
    answer = ask(client, "panel_wrong", "vote")

    assert "Answer: 42" in answer.json()["choices"][0]["message"]["content"]
    record = record_of(client, answer.headers["x-request-id"])
    assert len(record["calls"]) == 5


def test_a_wrong_proposer_is_not_among_what_a_committee_fuses(client: httpx.Client, upstream: Upstream) -> None:
    upstream.forget()
    answer = ask(client, "panel_wrong", "committee")

    assert answer.status_code == 200
    (merged,) = [str(s["body"]) for s in upstream.seen() if b"Write the one best answer" in s["body"]]
    assert "Answer: 42" in merged
    assert "Answer: 41" not in merged
    judgements = record_of(client, answer.headers["x-request-id"])["judgements"]
    assert sorted(j["points"] for j in judgements) == [0.0, 0.5, 1.0]
    assert min(judgements, key=lambda j: j["points"])["score"] == pytest.approx(0.4)
    assert max(judgements, key=lambda j: j["points"])["score"] == pytest.approx(0.9)


def test_a_judge_that_flips_counts_for_nothing_and_the_answer_still_comes(
    tmp_path_factory: pytest.TempPathFactory, upstream: Upstream
) -> None:
    tables = [
        f'[models.{alias}]\nendpoints = [{{ base_url = "{upstream.base_url}", model = "{model}" }}]\n'
        for alias, model in (("panel", "panel"), ("judge", "judge_flips"))
    ]
    upstream.forget()
    with running_mesh(tmp_path_factory.mktemp("flips"), "".join(tables)) as mesh, mesh.client() as client:
        for _ in range(4):
            assert ask(client, "panel", "committee").status_code == 200
        assert flip_ratio(mesh) > 0.3
        answer = ask(client, "panel", "committee")  # from here on the judge is fair, and prefers the longest
        record = record_of(client, answer.headers["x-request-id"])

    assert answer.status_code == 200
    assert any("count for nothing" in d for d in answer.json()["hivemind"]["degraded"])
    assert "judgements" not in record or record["judgements"] == []


def flip_ratio(mesh: RunningMesh) -> float:
    port = mesh.plan["processes"]["router"]["metrics"]
    text = httpx.get(f"http://127.0.0.1:{port}/metrics").text
    return float(next(line.split()[1] for line in text.splitlines() if line.startswith("hivemind_judge_flip_ratio ")))


@pytest.mark.parametrize("strategy", MANY)
def test_no_strategy_spends_more_than_a_budget_that_binds(
    client: httpx.Client, upstream: Upstream, strategy: str
) -> None:
    decided = client.post(
        "/api/route", json={"model": "panel", "messages": [{"role": "user", "content": "x"}],
                            "hints": {"strategy": strategy}},
    ).json()  # fmt: skip
    limit = int(decided["candidates"][0]["cost_micros"]) + 20 * COST_MICROS
    tenant = f"bound-{strategy.replace('_', '-')}"
    budget = {"tenant": tenant, "period": "DAY", "limit_micros": limit}
    assert client.post("/api/config/governor", json={"budgets": [budget]}).status_code == 200
    until(lambda: mine(client, tenant), what="the budget is there")
    upstream.forget()

    def one(_: int) -> int:
        return ask(client, "panel", strategy, tenant=tenant).status_code

    with ThreadPoolExecutor(6) as threads:
        statuses = Counter(threads.map(one, range(36)))

    paid = [s for s in upstream.seen() if s["model"] == "panel" and b"compare two answers" not in s["body"]]
    assert set(statuses) == {200, 429}, statuses
    assert 0 < COST_MICROS * len(paid) <= limit

    def booked() -> bool:
        found = mine(client, tenant)
        return int(found["spent_micros"]) == COST_MICROS * len(paid) and int(found["reserved_micros"]) == 0

    until(booked, what="the Governor has booked what the model server counted")


def mine(client: httpx.Client, tenant: str) -> dict[str, Any]:
    budgets = client.get("/api/spend").json()["budgets"]
    found: dict[str, Any] = next(b for b in budgets if b["budget"]["tenant"] == tenant)
    return found
