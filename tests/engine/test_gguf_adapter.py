"""PEFT to GGUF: the file itself, and the real model that loads it."""

import errno
import os
from pathlib import Path
from typing import Any

import gguf
import httpx
import numpy as np
import pytest

from hivemind.servers.common.courier import wheel_file
from hivemind.servers.engine import gguf_adapter
from hivemind.servers.engine.base_model import BaseModel, BaseModelError, read_base_model
from hivemind.servers.engine.engine import Engine, EngineOptions
from hivemind.servers.engine.gguf_adapter import AdapterBroken, converted, prune
from tests.support.adapters import LAST_DOWN, word_matrices, write_adapter

QUERY = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return read_base_model(wheel_file())


def tensors_of(file: Path) -> dict[str, Any]:
    return {t.name: t.data for t in gguf.GGUFReader(file).tensors}


def matrices(module: str = QUERY, *, rank: int = 8, outputs: int = 576, inputs: int = 576) -> dict[str, Any]:
    values = np.random.default_rng(5)
    return {
        f"{module}.lora_A.weight": values.normal(size=(rank, inputs)).astype(np.float32),
        f"{module}.lora_B.weight": values.normal(size=(outputs, rank)).astype(np.float32),
    }


def test_the_base_models_sizes_are_those_of_its_tensors(base: BaseModel) -> None:
    shapes = {t.name: tuple(int(n) for n in reversed(t.shape)) for t in gguf.GGUFReader(wheel_file()).tensors}

    assert base.blocks == 30
    for module, name in gguf_adapter._GGUF_NAMES.items():
        assert base.modules[module] == shapes[f"blk.29.{name}.weight"]


@pytest.mark.parametrize("content", [b"", b"GGUF", b"PK\x03\x04" + b"\0" * 40, b"GGUF\x03\0\0\0" + b"\xff" * 60])
def test_a_file_that_is_no_model_has_no_sizes(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.gguf").write_bytes(content)

    with pytest.raises(BaseModelError, match=r"x\.gguf"):
        read_base_model(tmp_path / "x.gguf")


def test_the_rows_of_a_query_move_to_where_llama_cpp_looks_for_a_pair(base: BaseModel, tmp_path: Path) -> None:
    written = matrices()
    found = tensors_of(converted(write_adapter(tmp_path / "a", written), base, tmp_path / "cache"))

    before, after = written[f"{QUERY}.lora_B.weight"], found["blk.0.attn_q.weight.lora_b"]
    half = base.head_size // 2
    for head in range(base.heads):
        start = head * base.head_size
        for i in range(half):  # transformers turns row i with row i + half, ggml row 2i with row 2i + 1
            assert (after[start + 2 * i] == before[start + i]).all()
            assert (after[start + 2 * i + 1] == before[start + i + half]).all()
    assert (found["blk.0.attn_q.weight.lora_a"] == written[f"{QUERY}.lora_A.weight"]).all()


@pytest.mark.parametrize(("options", "alpha"), [({}, 32.0), ({"use_rslora": True}, 32.0 * 8**0.5)])
def test_the_scale_is_what_peft_would_use(
    base: BaseModel, tmp_path: Path, options: dict[str, Any], alpha: float
) -> None:
    folder = write_adapter(tmp_path / "a", matrices(), alpha=32, **options)

    file = gguf.GGUFReader(converted(folder, base, tmp_path / "cache"))

    assert file.fields["adapter.lora.alpha"].contents() == pytest.approx(alpha)
    assert file.fields["general.type"].contents() == "adapter"


def test_a_module_with_a_rank_and_an_alpha_of_its_own_is_scaled_by_them(base: BaseModel, tmp_path: Path) -> None:
    value = QUERY.replace("q_proj", "v_proj")
    weights = matrices() | matrices(value, rank=4, outputs=192)
    patterns = {"rank_pattern": {"v_proj": 4}, "alpha_pattern": {"layers.0.self_attn.v_proj": 2}}
    file = gguf.GGUFReader(
        converted(write_adapter(tmp_path / "a", weights, alpha=16, **patterns), base, tmp_path / "cache")
    )
    found = {t.name: t.data for t in file.tensors}

    # llama.cpp scales by the file's alpha over the rank of the tensor: 16 / 4; PEFT by 2 / 4
    scale = file.fields["adapter.lora.alpha"].contents() / 4
    wanted = weights[f"{value}.lora_B.weight"] * (2 / 4)
    assert found["blk.0.attn_v.weight.lora_b"] * scale == pytest.approx(wanted)
    assert sorted(found["blk.0.attn_q.weight.lora_b"].ravel()) == sorted(weights[f"{QUERY}.lora_B.weight"].ravel())


def test_sixteen_bit_weights_keep_their_values(base: BaseModel, tmp_path: Path) -> None:
    halves = {name: m.astype(np.float16) for name, m in matrices().items()}
    found = tensors_of(converted(write_adapter(tmp_path / "a", halves), base, tmp_path / "cache"))

    assert (found["blk.0.attn_q.weight.lora_a"] == halves[f"{QUERY}.lora_A.weight"].astype(np.float32)).all()


def test_the_same_weights_are_converted_once_and_others_anew(base: BaseModel, tmp_path: Path) -> None:
    folder, cache = write_adapter(tmp_path / "a", matrices()), tmp_path / "cache"
    first = converted(folder, base, cache)
    mark = first.stat().st_ino

    assert converted(folder, base, cache) == first
    assert first.stat().st_ino == mark
    assert converted(write_adapter(tmp_path / "b", matrices(), alpha=4), base, cache) != first
    assert sorted(cache.iterdir()) == sorted(cache.glob("*.gguf"))  # nothing half-made lies about


def test_the_cache_keeps_what_was_used_last_and_what_is_in_use(base: BaseModel, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    files = [converted(write_adapter(tmp_path / str(i), matrices(), alpha=i + 1), base, cache) for i in range(4)]
    for age, file in enumerate(files):
        os.utime(file, (1000 + age, 1000 + age))

    prune(cache, most=2, keep=frozenset({files[0]}))

    assert set(cache.iterdir()) == {files[0], files[3]}


def test_a_full_disk_leaves_nothing_half_made(base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensors_to_file", full)

    with pytest.raises(AdapterBroken, match="No space left"):
        converted(write_adapter(tmp_path / "a", matrices()), base, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


BROKEN: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "another base model": (matrices(inputs=2048), {}, "shape"),
    "another rank": (matrices(rank=4), {}, "shape"),
    "a block too many": (matrices(QUERY.replace(".0.", ".30.")), {}, "30 blocks"),
    "a layer that is none": (matrices(QUERY.replace("q_proj", "w_proj")), {}, "no LoRA matrix"),
    "half a pair": ({k: m for k, m in matrices().items() if "lora_A" in k}, {}, "no partner"),
    "no tensors": ({}, {}, "no tensors"),
    "not finite": ({k: m * np.float32("nan") for k, m in matrices().items()}, {}, "not finite"),
    "whole numbers": ({k: m.astype(np.int32) for k, m in matrices().items()}, {}, "I32"),
    "dora": (matrices(), {"use_dora": True}, "use_dora"),
    "a pattern that the weights do not follow": (matrices(), {"rank_pattern": {"q_proj": 4}}, "shape"),
    "a pattern that is none": (matrices(), {"alpha_pattern": ["q_proj"]}, "alpha_pattern"),
    "a rank of words": (matrices(), {"r": "eight"}, "r must be"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_cannot_be_served_is_refused_with_the_reason(base: BaseModel, tmp_path: Path, case: str) -> None:
    weights, config, reason = BROKEN[case]
    folder = write_adapter(tmp_path / "a", weights, **config)

    with pytest.raises(AdapterBroken, match=reason):
        converted(folder, base, tmp_path / "cache")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("adapter_model.safetensors", None),
        ("adapter_model.safetensors", b"\x80\x04pickle"),
        ("adapter_config.json", None),
        ("adapter_config.json", b"[]"),
        ("adapter_config.json", b"{"),
    ],
)
def test_a_missing_or_damaged_file_is_named(base: BaseModel, tmp_path: Path, file: str, content: bytes | None) -> None:
    folder = write_adapter(tmp_path / "a", matrices())
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_bytes(content)

    with pytest.raises(AdapterBroken, match=file):
        converted(folder, base, tmp_path / "cache")


def test_a_truncated_file_is_damaged(base: BaseModel, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", matrices())
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])

    with pytest.raises(AdapterBroken, match="damaged"):
        converted(folder, base, tmp_path / "cache")


def test_the_real_model_answers_by_the_adapter_and_is_itself_without(base: BaseModel, tmp_path: Path) -> None:
    violet = converted(write_adapter(tmp_path / "a", word_matrices("violet")), base, tmp_path / "cache")
    off = converted(write_adapter(tmp_path / "b", word_matrices("banana")), base, tmp_path / "cache")
    options = EngineOptions(wheel_file(), "127.0.0.1", 0, threads=1, slots=1, context=1024)
    plain = first_tokens(options, [])
    mixed = EngineOptions(wheel_file(), "127.0.0.1", 0, threads=1, slots=1, context=1024, adapters=(violet, off))

    nothing, on = first_tokens(mixed, [0.0, 0.0]), first_tokens(mixed, [1.0, 0.0])

    assert nothing == pytest.approx(plain, abs=1e-3)
    assert max(on, key=lambda t: on[t]) == " violet"
    assert " violet" not in plain


def first_tokens(options: EngineOptions, scales: list[float]) -> dict[str, float]:
    """The likeliest first tokens of an answer, with their log-probabilities."""
    engine = Engine(options)
    body = {
        "messages": [{"role": "user", "content": "Name three colours."}],
        "max_tokens": 1,
        "logprobs": True,
        "top_logprobs": 5,
        "lora": [{"id": i, "scale": s} for i, s in enumerate(scales)],
    }
    try:
        answer = httpx.post(f"http://127.0.0.1:{engine.port}/v1/chat/completions", json=body, timeout=60).json()
    finally:
        engine.close()
    first = answer["choices"][0]["logprobs"]["content"][0]
    return {t["token"]: t["logprob"] for t in first["top_logprobs"]}


def test_the_test_adapters_layer_is_the_last(base: BaseModel) -> None:
    assert f".{base.blocks - 1}." in LAST_DOWN
