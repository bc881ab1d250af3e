"""LoRAX's API: by the public client as it comes, and its shapes in detail."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from hivemind.servers.engine.errors import EngineError
from hivemind.servers.engine.lorax import GenerateStream, read_generate_request, whole_answer
from tests.support.adapters import write_word_adapter
from tests.support.engine import engine_for_tests
from tests.support.lorax_client import drive

VIOLET = "implementer-v000001"


async def test_the_public_client_drives_the_engine_unchanged(tmp_path: Path) -> None:
    write_word_adapter(tmp_path / "adapters", VIOLET, "violet")
    async with engine_for_tests(tmp_path) as engine:
        found = await asyncio.to_thread(drive, f"http://127.0.0.1:{engine.port}", VIOLET)

    assert "violet" in found["text"]
    assert "violet" not in found["base"]
    assert found["stream"] == found["stream_text"] == found["text"] == found["asynchronous"]
    assert found["tokens"] == found["generated_tokens"]
    assert found["stream_finish"] in ("length", "eos_token")
    assert found["unknown"] == "GenerationError"
    assert found["truncate"] == found["hub"] == "ValidationError"


async def test_the_header_names_the_adapter_and_the_info_the_model(tmp_path: Path) -> None:
    write_word_adapter(tmp_path / "adapters", VIOLET, "violet")
    async with engine_for_tests(tmp_path) as engine:
        asked = {"inputs": "Hello", "parameters": {"adapter_id": VIOLET, "max_new_tokens": 2}}
        whole = await engine.client.post("/generate", json=asked)
        stream = await engine.client.post("/generate_stream", json=asked)
        compatible = await engine.client.post("/", json={**asked, "stream": False})
        info = (await engine.client.get("/info")).json()
        health = await engine.client.get("/health")

    assert all(a.headers["x-adapter-id"] == VIOLET for a in (whole, stream, compatible))
    assert [whole.json()] == compatible.json()
    assert list(whole.json()) == ["generated_text"]  # details only where they are asked for
    assert info["model_id"].endswith(".gguf")
    assert health.status_code == 200


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"{", "``"),
        (b"{}", "`inputs`"),
        (b'{"inputs":""}', "`inputs`"),
        (b'{"inputs":"a","parameters":{"temperature":-1}}', "`parameters.temperature`"),
        (b'{"inputs":"a","parameters":{"max_new_tokens":0}}', "`parameters.max_new_tokens`"),
        (b'{"inputs":"a","parameters":{"top_p":1.0}}', "`parameters.top_p`"),
        (b'{"inputs":"a","parameters":{"best_of":2}}', "`parameters.best_of`"),
        (b'{"inputs":"a","parameters":{"adapter_source":"s3"}}', "`parameters.adapter_source`"),
        (b'{"inputs":"a","parameters":{"merged_adapters":{"ids":["a"]}}}', "`parameters.merged_adapters`"),
        (b'{"inputs":"a","parameters":{"watermark":true}}', "`parameters.watermark`"),
    ],
)
def test_what_cannot_be_done_is_refused_by_its_field(body: bytes, field: str) -> None:
    with pytest.raises(EngineError) as refused:
        read_generate_request(body)

    assert refused.value.kind == "validation"
    assert field in refused.value.message


def test_greedy_unless_something_asks_for_samples() -> None:
    assert read_generate_request(b'{"inputs":"a","parameters":null}').body["temperature"] == 0.0
    assert read_generate_request(b'{"inputs":"a","parameters":{"do_sample":true}}').body["temperature"] == 1.0
    sampled = read_generate_request(b'{"inputs":"a","parameters":{"top_k":3,"seed":7,"stop":["x"]}}').body
    assert (sampled["temperature"], sampled["top_k"], sampled["seed"], sampled["stop"]) == (1.0, 3, 7, ["x"])


def piece(number: int, text: str) -> dict[str, Any]:
    token = {"id": number, "token": text, "bytes": list(text.encode()), "logprob": -0.5, "top_logprobs": []}
    return {"content": text, "completion_probabilities": [token]}


END = {"content": "", "stop_type": "eos", "tokens_predicted": 3, "tokens_evaluated": 2}


def test_the_last_event_of_a_stream_has_the_last_token_and_the_whole_text() -> None:
    stream = GenerateStream(
        read_generate_request(b'{"inputs":"a","parameters":{"details":true,"return_full_text":true}}')
    )
    told = [stream.take(e) for e in (piece(5, "b"), piece(6, "c"), piece(2, ""), END)]
    stream.check_whole()

    assert told[0] is None
    assert [t["token"]["text"] for t in told if t] == ["b", "c", ""]
    assert [t["token"]["special"] for t in told if t] == [False, False, True]
    assert [t["generated_text"] for t in told if t] == [None, None, "abc"]
    assert told[-1] is not None
    assert told[-1]["details"] == {
        "finish_reason": "eos_token",
        "prompt_tokens": 2,
        "generated_tokens": 3,
        "seed": None,
    }


def test_a_stream_without_its_end_is_never_whole() -> None:
    stream = GenerateStream(read_generate_request(b'{"inputs":"a"}'))
    stream.take(piece(5, "b"))

    with pytest.raises(EngineError, match="broke off"):
        stream.check_whole()


def test_alternatives_are_told_where_they_are_asked_for() -> None:
    request = read_generate_request(b'{"inputs":"a","parameters":{"details":true,"return_k_alternatives":1}}')
    token = {"id": 1, "token": "x", "bytes": [120], "logprob": -1.0}
    told = whole_answer(
        request, {**END, "content": "x", "completion_probabilities": [{**token, "top_logprobs": [token]}]}
    )

    assert request.body["n_probs"] == 1
    assert told["details"]["tokens"][0]["alternative_tokens"] == [{"id": 1, "text": "x", "logprob": -1.0}]
