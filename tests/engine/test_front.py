"""The engine as its clients see it, with the real model."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from hivemind.servers.engine import generations
from hivemind.servers.engine.engine import EngineOptions
from hivemind.servers.engine.generation import Generation, start_generation
from tests.support.adapters import word_matrices, write_adapter, write_word_adapter
from tests.support.engine import QUESTION, TestEngine, engine_for_tests
from tests.support.waiting import until

VIOLET, BANANA, ORANGE = (f"implementer-v00000{n}" for n in (1, 2, 3))
WORDS = {VIOLET: "violet", BANANA: "banana", ORANGE: "orange"}
LONG = {"max_tokens": 400, "ignore_eos": True, "stream": True}


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[TestEngine]:
    for adapter_id, word in WORDS.items():
        write_word_adapter(tmp_path / "adapters", adapter_id, word)
    async with engine_for_tests(tmp_path) as running:
        yield running


def text_of(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def without_what_is_never_the_same(raw: bytes) -> bytes:
    return re.sub(rb'"(id|created|timings)":("[^"]*"|\d+|\{[^}]*\})', b"", raw)


async def generation_of(engine: TestEngine) -> Generation:
    await engine.generations.load(None)
    assert engine.generations._current is not None
    return engine.generations._current


def busy(port: int) -> bool:
    return bool(httpx.get(f"http://127.0.0.1:{port}/slots").json()[0]["is_processing"])


def front_process(home: Path) -> subprocess.Popen[bytes]:
    settings = {"HIVEMIND_HOME": str(home), "HIVEMIND_HTTP_PORT": "0", "HIVEMIND_METRICS_PORT": "0"}
    command = [sys.executable, "-m", "hivemind.servers.engine"]
    return subprocess.Popen(command, env={**os.environ, **settings}, stdout=subprocess.DEVNULL)


def workers(module: str) -> list[psutil.Process]:
    return [c for c in psutil.Process().children() if module in " ".join(c.cmdline())]


class Held:
    """Starts generations once it is let; notes what each was to hold."""

    def __init__(self) -> None:
        self.begun, self.go_on = asyncio.Event(), asyncio.Event()
        self.adapters: list[tuple[str, ...]] = []

    async def __call__(self, options: EngineOptions, adapters: tuple[str, ...]) -> Generation:
        self.adapters.append(adapters)
        self.begun.set()
        await self.go_on.wait()
        return await start_generation(options, adapters)


async def eventually(condition: Any, what: str) -> None:
    await asyncio.to_thread(until, condition, within_s=30, what=what)


async def test_each_request_gets_the_adapter_that_it_names_and_no_other(engine: TestEngine) -> None:
    plain = await engine.chat()
    names = ["courier", VIOLET, BANANA, ORANGE] * 3
    answers = await asyncio.gather(*(engine.chat(model=name) for name in names))

    for name, answer in zip(names, answers, strict=True):
        if name == "courier":
            assert text_of(answer) == text_of(plain)
            assert "x-adapter-id" not in answer.headers
        else:
            assert WORDS[name] in text_of(answer)
            assert answer.headers["x-adapter-id"] == name


async def test_adapter_id_in_the_body_names_an_adapter_too(engine: TestEngine) -> None:
    answer = await engine.chat(model="courier", adapter_id=VIOLET, lora=[{"id": 0, "scale": 0.0}])

    assert "violet" in text_of(answer)
    assert answer.headers["x-adapter-id"] == VIOLET
    assert (await engine.chat(model=BANANA, adapter_id=VIOLET)).status_code == 400


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_is_llama_cpps_own_bytes(engine: TestEngine, stream: bool) -> None:
    generation = await generation_of(engine)
    body = {"messages": [QUESTION], "temperature": 0, "max_tokens": 3, "stream": stream, "cache_prompt": False}
    own = await engine.client.post("/v1/chat/completions", json=body)
    direct = await engine.client.post(f"http://127.0.0.1:{generation.port}/v1/chat/completions", json=body)

    assert own.status_code == 200
    assert own.headers["content-type"] == direct.headers["content-type"] or stream
    assert without_what_is_never_the_same(own.content) == without_what_is_never_the_same(direct.content)
    assert own.text.endswith("data: [DONE]\n\n") == stream


async def test_log_probabilities_and_completions_are_passed_on(engine: TestEngine) -> None:
    chat = await engine.chat(logprobs=True, top_logprobs=2, max_tokens=2)
    assert len(chat.json()["choices"][0]["logprobs"]["content"][0]["top_logprobs"]) == 2

    plain = await engine.client.post("/v1/completions", json={"prompt": "One, two,", "max_tokens": 2})
    assert plain.json()["choices"][0]["text"]


async def test_models_lists_the_base_and_every_adapter_on_disk(engine: TestEngine) -> None:
    await engine.chat(model=VIOLET)
    models = {m["id"]: m for m in (await engine.client.get("/v1/models")).json()["data"]}

    assert set(models) == {"courier", *WORDS}
    assert {name for name, m in models.items() if m.get("loaded")} == {VIOLET}


async def test_an_unknown_adapter_is_a_404_in_openais_shape(engine: TestEngine) -> None:
    for name in ("nope", "../x-v000001", "implementer/v000001", "implementer-v000009", "a-v1", ".-v000001"):
        answer = await engine.chat(model=name)
        assert answer.status_code == 404, name
        assert answer.json()["error"]["code"] == "model_not_found"
        assert answer.json()["error"]["type"] == "invalid_request_error"


async def test_a_directory_that_is_a_link_is_no_adapter(engine: TestEngine, tmp_path: Path) -> None:
    (engine.adapters / "implementer" / "v000007").symlink_to(engine.adapters / "implementer" / "v000001")

    assert (await engine.chat(model="implementer-v000007")).status_code == 404


async def test_a_body_that_is_wrong_is_a_400(engine: TestEngine) -> None:
    for body in (b"{", b"[]", b'{"model":5}', b'{"adapter_id":[]}', b'{"user":"\xff"}', b"NaN"):
        answer = await engine.client.post("/v1/chat/completions", content=body)
        assert answer.status_code == 400, body
        assert answer.json()["error"]["message"]


async def test_what_is_too_large_or_nowhere_is_told_so(engine: TestEngine) -> None:
    large = await engine.client.post("/v1/chat/completions", content=b" " * ((1 << 20) + 1))
    assert (large.status_code, large.json()["error"]["code"]) == (413, "too_large")
    nowhere = await engine.client.get("/slots")
    assert (nowhere.status_code, nowhere.json()["error"]["code"]) == (404, "unknown_path")


async def test_a_broken_adapter_is_a_424_and_the_rest_is_served_on(engine: TestEngine) -> None:
    broken = "implementer-v000008"
    write_adapter(engine.adapters / "implementer" / "v000008", word_matrices("violet"), rank=4)

    openai, lorax, good = await asyncio.gather(
        engine.chat(model=broken),
        engine.client.post("/generate", json={"inputs": "Hi", "parameters": {"adapter_id": broken}}),
        engine.chat(model=VIOLET),
    )

    assert (openai.status_code, openai.json()["error"]["code"]) == (424, "adapter_failed")
    assert "shape" in openai.json()["error"]["message"]
    assert (lorax.status_code, lorax.json()["error_type"]) == (424, "generation")
    assert "violet" in text_of(good)


@pytest.mark.parametrize("damage", [b"GGUF and then nothing", None])
async def test_a_copy_that_was_damaged_is_made_anew(engine: TestEngine, damage: bytes | None) -> None:
    await engine.generations.load(VIOLET)
    (copy,) = (engine.home / "cache").glob("*.gguf")
    whole = copy.read_bytes()
    copy.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    engine.generations.forget(VIOLET)

    refused = await engine.chat(model=VIOLET)
    again = await engine.chat(model=VIOLET)

    assert (refused.status_code, refused.json()["error"]["code"]) == (424, "adapter_failed")
    assert "violet" in text_of(again)
    assert (await engine.chat()).status_code == 200


async def test_one_request_more_than_may_wait_is_a_429(tmp_path: Path) -> None:
    async with engine_for_tests(tmp_path, slots=1, waiting=0) as engine:
        await engine.generations.load(None)
        async with engine.client.stream("POST", "/v1/chat/completions", json={"messages": [QUESTION], **LONG}) as busy:
            lines = busy.aiter_lines()
            await anext(lines)
            openai = await engine.chat()
            lorax = await engine.client.post("/generate", json={"inputs": "Hi"})

        assert (openai.status_code, openai.json()["error"]["type"]) == (429, "rate_limit_error")
        assert openai.headers["retry-after"] == "1"
        assert (lorax.status_code, lorax.json()["error_type"]) == (429, "overloaded")
        await eventually(lambda: engine.generations._admitted == 0, "the place is free again")
        assert (await engine.chat()).status_code == 200


async def test_a_client_that_leaves_ends_its_generation(tmp_path: Path) -> None:
    async with engine_for_tests(tmp_path, slots=1) as engine:
        port = (await generation_of(engine)).port
        async with engine.client.stream("POST", "/v1/chat/completions", json={"messages": [QUESTION], **LONG}) as left:
            lines = left.aiter_lines()
            await anext(lines)
            assert await asyncio.to_thread(busy, port)

        await eventually(lambda: not busy(port), "llama.cpp has stopped")
        assert (await engine.chat()).status_code == 200


async def test_others_are_answered_while_the_first_adapter_is_being_converted(engine: TestEngine) -> None:
    await engine.generations.load(None)
    weights = engine.adapters / "implementer" / "v000002" / "adapter_model.safetensors"
    content = weights.read_bytes()
    weights.unlink()
    os.mkfifo(weights)  # whoever reads it waits until it is written

    wants_banana = asyncio.ensure_future(engine.chat(model=BANANA))
    await eventually(lambda: workers("engine.converter"), "the conversion has begun")
    before = [text_of(await engine.chat(max_tokens=2)) for _ in range(3)]
    assert not wants_banana.done()
    await asyncio.to_thread(weights.write_bytes, content)

    assert all(before)
    assert "banana" in text_of(await wants_banana)


async def test_a_stream_goes_on_and_others_are_answered_while_adapters_are_loaded(
    engine: TestEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await engine.generations.load(None)
    start, begun, go_on = Held(), asyncio.Event(), asyncio.Event()

    async def held_open(generation: Generation) -> None:
        begun.set()
        await go_on.wait()
        await rehearse(generation)

    rehearse = engine.generations._rehearse
    monkeypatch.setattr(generations, "start_generation", start)
    monkeypatch.setattr(engine.generations, "_rehearse", held_open)
    body = {"messages": [QUESTION], **LONG}
    async with engine.client.stream("POST", "/v1/chat/completions", json=body) as streamed:
        lines = streamed.aiter_lines()
        await anext(lines)
        loads = [asyncio.ensure_future(engine.chat(model=VIOLET))]
        for held in (start.begun, begun):  # before the new process starts, and when it could take over
            await held.wait()
            for _ in range(6):
                assert "error" not in await anext(lines)
            assert (await engine.chat(max_tokens=2)).status_code == 200
            assert not any(load.done() for load in loads)
            loads.append(asyncio.ensure_future(engine.chat(model=(BANANA, ORANGE)[len(loads) - 1])))
            start.go_on.set()
        go_on.set()
        rest = [line async for line in lines if line]

    assert rest[-1] == "data: [DONE]"
    assert [word in text_of(await load) for word, load in zip(WORDS.values(), loads, strict=True)] == [True] * 3


async def test_what_is_asked_for_during_a_load_comes_with_one_generation(
    engine: TestEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await engine.generations.load(None)
    for number in range(4, 11):
        write_word_adapter(engine.adapters, f"implementer-v{number:06d}", "violet")
    broken = "implementer-v000011"
    write_adapter(engine.adapters / "implementer" / "v000011", word_matrices("violet"), rank=4)
    start = Held()
    monkeypatch.setattr(generations, "start_generation", start)

    first = asyncio.ensure_future(engine.generations.load(VIOLET))
    await start.begun.wait()
    names = [BANANA, ORANGE, *(f"implementer-v{number:06d}" for number in range(4, 12))]
    others = asyncio.gather(*(engine.generations.load(name) for name in names), return_exceptions=True)
    await eventually(lambda: len(engine.generations._asked) == 11, "all are asked for")
    start.go_on.set()
    await first
    told = dict(zip(names, await others, strict=True))

    assert [name for name, error in told.items() if error is not None] == [broken]
    assert start.adapters == [(VIOLET,), (VIOLET, *names[:-1])]
    assert engine.generations.held == sorted([VIOLET, *names[:-1]])


async def test_the_next_generation_has_read_the_last_prompts_before_it_answers(engine: TestEngine) -> None:
    long = [{"role": "user", "content": "Count the waves. " * 40}]
    cold = (await engine.chat(messages=long, max_tokens=1)).json()["timings"]["prompt_n"]
    await engine.generations.load(VIOLET)
    warm = (await engine.chat(messages=long, max_tokens=1)).json()["timings"]["prompt_n"]

    assert cold > 100
    assert warm == 1


async def test_a_generation_that_takes_over_is_no_longer_behind_others(engine: TestEngine) -> None:
    await engine.generations.load(None)
    own = os.getpriority(os.PRIO_PROCESS, 0)
    await engine.generations.load(VIOLET)
    process = (await generation_of(engine))._process

    def priorities() -> set[int]:
        return {os.getpriority(os.PRIO_PROCESS, t.id) for t in psutil.Process(process.pid).threads()}

    await eventually(lambda: priorities() == {own}, "every thread is as before")


async def test_a_generation_that_dies_before_it_takes_over_leaves_the_one_at_hand_serving(
    engine: TestEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await generation_of(engine)

    async def die(generation: Generation) -> None:
        generation._process.kill()
        await generation._process.wait()

    monkeypatch.setattr(engine.generations, "_rehearse", die)
    answer = await engine.chat(model=VIOLET)

    assert (answer.status_code, answer.json()["error"]["code"]) == (424, "adapter_failed")
    assert (await engine.chat()).status_code == 200
    assert await generation_of(engine) is before


async def test_a_converter_that_dies_is_told_and_the_adapter_can_be_asked_for_again(engine: TestEngine) -> None:
    await engine.generations.load(None)
    weights = engine.adapters / "implementer" / "v000001" / "adapter_model.safetensors"
    content = weights.read_bytes()
    weights.unlink()
    os.mkfifo(weights)
    refused = asyncio.ensure_future(engine.chat(model=VIOLET))
    await eventually(lambda: workers("engine.converter"), "the conversion has begun")
    workers("engine.converter")[0].kill()

    assert (await refused).status_code == 424
    assert "code -9" in (await refused).text
    weights.unlink()
    weights.write_bytes(content)
    assert "violet" in text_of(await engine.chat(model=VIOLET))


async def test_steady_requests_for_the_base_do_not_keep_an_adapter_waiting_for_ever(engine: TestEngine) -> None:
    await engine.generations.load(VIOLET)
    turns = (await generation_of(engine)).turns
    ended: list[str] = []

    async def ask(name: str, model: str, tokens: int) -> None:
        assert (await engine.chat(model=model, max_tokens=tokens, ignore_eos=True)).status_code == 200
        ended.append(name)

    first = asyncio.ensure_future(ask("first", "courier", 60))
    await eventually(lambda: turns._running == 1, "the first is being answered")
    violet = asyncio.ensure_future(ask("violet", VIOLET, 2))
    await eventually(lambda: len(turns._queue) == 1, "the adapter waits, though a slot is free")
    later = asyncio.ensure_future(ask("later", "courier", 20))
    await asyncio.gather(first, violet, later)

    assert ended == ["first", "violet", "later"]


async def test_requests_without_a_break_see_no_failure_over_flips(engine: TestEngine) -> None:
    await engine.generations.load(None)
    loaded = asyncio.Event()
    statuses: list[int] = []

    async def ask_on() -> None:
        while not loaded.is_set():
            statuses.append((await engine.chat(max_tokens=2)).status_code)

    askers = [asyncio.ensure_future(ask_on()) for _ in range(3)]
    for adapter_id in WORDS:
        await engine.generations.load(adapter_id)
    loaded.set()
    await asyncio.gather(*askers)

    assert set(statuses) == {200}
    await eventually(lambda: not engine.generations._draining, "the old generations have ended")
    assert len(workers("engine.worker")) == 1


async def test_the_adapter_used_longest_ago_makes_room(tmp_path: Path) -> None:
    for adapter_id, word in WORDS.items():
        write_word_adapter(tmp_path / "adapters", adapter_id, word)
    async with engine_for_tests(tmp_path, adapter_bytes=150_000) as engine:  # one takes 69 kB
        for name in (VIOLET, BANANA, VIOLET, ORANGE):
            assert WORDS[name] in text_of(await engine.chat(model=name))
        assert engine.generations.held == [VIOLET, ORANGE]

        assert "banana" in text_of(await engine.chat(model=BANANA))  # it comes back when it is asked for


async def test_adapters_are_loaded_and_forgotten_by_name(engine: TestEngine) -> None:
    loaded = await engine.client.post("/adapters/load", json={"adapter_id": VIOLET})
    assert loaded.json() == {"loaded": [VIOLET]}
    assert (await engine.client.post("/adapters/load", json={"adapter_id": "x"})).status_code == 404
    assert (await engine.client.post("/adapters/load", json={})).status_code == 400

    assert (await engine.client.delete(f"/adapters/{VIOLET}")).json() == {"loaded": []}
    assert (await engine.client.get("/adapters")).json() == {"loaded": [], "on_disk": list(WORDS)}


async def test_a_generation_that_dies_is_replaced_with_its_adapters(engine: TestEngine) -> None:
    await engine.generations.load(VIOLET)
    died = await generation_of(engine)
    body = {"messages": [QUESTION], **LONG}
    async with engine.client.stream("POST", "/v1/chat/completions", json=body) as broken:
        lines = broken.aiter_lines()
        await anext(lines)
        os.kill(died._process.pid, signal.SIGKILL)
        rest = [line async for line in lines if line]

    assert json.loads(rest[-1].removeprefix("data:"))["error"]["code"] == "generation"
    assert "data: [DONE]" not in rest
    await eventually(lambda: engine.generations._current not in (None, died), "another serves")
    assert engine.generations.held == [VIOLET]
    assert "violet" in text_of(await engine.chat(model=VIOLET))


def test_no_generation_outlives_a_front_that_is_killed(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "HIVEMIND_HOME": str(tmp_path),
        "HIVEMIND_HTTP_PORT": "0",
        "HIVEMIND_METRICS_PORT": "0",
    }
    with subprocess.Popen(
        [sys.executable, "-m", "hivemind.servers.engine"], env=environment, stdout=subprocess.DEVNULL
    ) as front:
        worker = until(lambda: psutil.Process(front.pid).children()[0], within_s=30, what="a generation starts")
        front.kill()

    until(lambda: not worker.is_running(), within_s=60, what="the generation ends")


def test_a_front_that_is_told_to_end_ends_with_its_generation(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "HIVEMIND_HOME": str(tmp_path),
        "HIVEMIND_HTTP_PORT": "0",
        "HIVEMIND_METRICS_PORT": "0",
    }
    with subprocess.Popen(
        [sys.executable, "-m", "hivemind.servers.engine"], env=environment, stdout=subprocess.DEVNULL
    ) as front:
        worker = until(lambda: psutil.Process(front.pid).children()[0], within_s=30, what="a generation starts")
        front.terminate()
        assert front.wait(timeout=30) == 0

    assert not worker.is_running()
