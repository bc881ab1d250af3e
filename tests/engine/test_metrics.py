"""What the engine's metrics say after requests to the real model."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.adapters import word_matrices, write_adapter, write_word_adapter
from tests.support.engine import QUESTION, TestEngine, engine_for_tests

VIOLET, BROKEN = "implementer-v000001", "implementer-v000002"


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[TestEngine]:
    write_word_adapter(tmp_path / "adapters", VIOLET, "violet")
    write_adapter(tmp_path / "adapters" / "implementer" / "v000002", word_matrices("violet"), rank=4)
    async with engine_for_tests(tmp_path) as running:
        yield running


def value(engine: TestEngine, name: str, **labels: str) -> float | None:
    return engine.metrics.registry.get_sample_value(f"hivemind_engine_{name}", labels)


async def test_requests_and_tokens_are_counted_by_kind_of_model(engine: TestEngine) -> None:
    usage = (await engine.chat(max_tokens=5, ignore_eos=True)).json()["usage"]
    await engine.chat(max_tokens=5, ignore_eos=True, stream=True)
    await engine.client.post("/generate", json={"inputs": "Hi", "parameters": {"max_new_tokens": 3}})
    await engine.client.post("/generate_stream", json={"inputs": "Hi", "parameters": {"max_new_tokens": 3}})
    await engine.chat(model=VIOLET, max_tokens=2)
    await engine.chat(model=BROKEN)
    await engine.chat(model="nobody-v000001")
    await engine.chat(temperature="hot")

    assert value(engine, "requests_total", model="base", outcome="ok") == 4
    assert value(engine, "requests_total", model="base", outcome="refused") == 1
    assert value(engine, "requests_total", model="adapter", outcome="ok") == 1
    assert value(engine, "requests_total", model="adapter", outcome="adapter_failed") == 1
    assert value(engine, "requests_total", model="adapter", outcome="unknown_model") == 1
    assert value(engine, "tokens_total", model="base", kind="completion") == 5 + 5 + 3 + 3
    assert (value(engine, "tokens_total", model="base", kind="prompt") or 0) >= usage["prompt_tokens"]
    assert value(engine, "tokens_total", model="adapter", kind="completion") == 2
    assert value(engine, "request_seconds_count", model="base") == 5


async def test_loads_and_generations_are_shown(engine: TestEngine) -> None:
    await engine.chat(model=VIOLET)
    await engine.chat(model=BROKEN)

    assert value(engine, "adapter_loads_total", outcome="ok") == 1
    assert value(engine, "adapter_loads_total", outcome="failed") == 1
    assert value(engine, "load_seconds_count", step="start") == 2
    assert value(engine, "load_seconds_count", step="convert") == 2
    assert value(engine, "load_seconds_count", step="rehearse") == 1
    assert value(engine, "generations", state="serving") == 1
    assert value(engine, "adapters") == 1


async def test_a_stream_under_way_is_shown_and_one_that_is_left_is_counted_so(engine: TestEngine) -> None:
    body = {"messages": [QUESTION], "max_tokens": 400, "ignore_eos": True, "stream": True}
    async with engine.client.stream("POST", "/v1/chat/completions", json=body) as streamed:
        await anext(streamed.aiter_lines())
        assert value(engine, "requests_under_way", state="answered") == 1
        assert value(engine, "requests_under_way", state="waiting") == 0

    await engine.chat()
    assert value(engine, "requests_total", model="base", outcome="left") == 1
