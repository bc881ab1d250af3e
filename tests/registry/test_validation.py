"""What is refused at registration, and why (FAULTS 30); a full disk (FAULTS 33)."""

import json
import os
import pickle
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from hivemind.servers.adapter_registry.base_model import BaseModel, plain_name
from hivemind.servers.adapter_registry.safetensors_file import BrokenFile, first_infinite, read_header
from hivemind.servers.adapter_registry.validation import check_directory
from hivemind.servers.common.errors import MeshError
from hivemind.v1 import adapter_registry_pb2 as pb
from tests.support.peft import CONFIG, WEIGHTS, write_adapter
from tests.support.registry import ROLE, Rig, refused

META = "adapter_meta.json"
Q0 = "base_model.model.model.layers.0.self_attn.q_proj"


def change_weights(folder: Path, **tensors: Any) -> None:
    """Replaces tensors by the end of their name (A or B of q_proj in layer 0); None takes one away."""
    found = load_file(folder / WEIGHTS)
    for side, value in tensors.items():
        name = f"{Q0}.lora_{side}.weight"
        found.pop(name, None)
        if value is not None:
            found[name] = value
    save_file(found, folder / WEIGHTS)


def change_config(folder: Path, **fields: Any) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, **fields}))


def cut(folder: Path, count: int) -> None:
    with (folder / WEIGHTS).open("r+b") as file:
        file.truncate((folder / WEIGHTS).stat().st_size - count)


def with_nan(folder: Path) -> None:
    weights = np.zeros((8, 576), np.float32)
    weights[7, 575] = np.nan
    change_weights(folder, A=weights)


def as_link(folder: Path) -> None:
    target = folder.parent / "elsewhere.safetensors"
    (folder / WEIGHTS).rename(target)
    (folder / WEIGHTS).symlink_to(target)


def meta(folder: Path, **fields: Any) -> None:
    (folder / META).write_text(json.dumps(fields))


FAULTS: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "no configuration": (lambda f: (f / CONFIG).unlink(), CONFIG, "is missing"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), WEIGHTS, "is missing"),
    "truncated": (lambda f: cut(f, 1), WEIGHTS, "truncated: 1 bytes"),
    "empty": (lambda f: (f / WEIGHTS).write_bytes(b""), WEIGHTS, "truncated"),
    "no safetensors": (lambda f: (f / WEIGHTS).write_bytes(b"\xff" * 64), WEIGHTS, "truncated or no safetensors"),
    "bytes behind": (lambda f: (f / WEIGHTS).open("ab").write(b"x"), WEIGHTS, "1 bytes behind"),
    "another base model": (
        lambda f: change_config(f, base_model_name_or_path="meta-llama/Llama-3.2-1B"), CONFIG, "meta-llama/"),
    "a base model by meta": (lambda f: meta(f, base_model="master"), META, "'master'"),
    "another revision": (lambda f: meta(f, base_revision="sha256:00"), META, "base_revision"),
    "another sum": (lambda f: meta(f, sha256="00"), META, "sha256"),
    "shapes of another model": (
        lambda f: change_weights(f, A=np.zeros((8, 2048), np.float32)), WEIGHTS, "576 x 2048"),
    "rank of the weights": (
        lambda f: change_weights(f, A=np.zeros((4, 576), np.float32)), WEIGHTS, "rank 4 (A) and 8 (B)"),
    "rank of the configuration": (lambda f: change_config(f, r=16), WEIGHTS, "says 16"),
    "rank 0": (lambda f: change_config(f, r=0), CONFIG, "r is 0"),
    "rank as text": (lambda f: change_config(f, r="8"), CONFIG, "r is '8'"),
    "half a pair": (lambda f: change_weights(f, B=None), WEIGHTS, "has no lora_B"),
    "a module that is no target": (lambda f: change_config(f, target_modules=["v_proj"]), WEIGHTS, "not among"),
    "NaN": (with_nan, WEIGHTS, "NaN"),
    "infinity": (lambda f: change_weights(f, A=np.full((8, 576), np.inf, np.float16)), WEIGHTS, "infinity"),
    "float64": (lambda f: change_weights(f, A=np.zeros((8, 576))), WEIGHTS, "F64"),
    "a pickle by name": (lambda f: (f / "adapter_model.bin").write_bytes(b"x"), "adapter_model.bin", "pickle"),
    "a pickle by content": (lambda f: (f / "notes.txt").write_bytes(pickle.dumps([1])), "notes.txt", "pickle"),
    "a symbolic link": (as_link, WEIGHTS, "symbolic link"),
    "a folder inside": (lambda f: (f / "checkpoint-1").mkdir(), "checkpoint-1", "not a plain file"),
    "a pipe": (lambda f: os.mkfifo(f / "pipe"), "pipe", "not a plain file"),
    "an odd name": (lambda f: (f / "a b").write_text(""), "'a b'", "odd name"),
    "broken JSON": (lambda f: (f / CONFIG).write_text("{"), CONFIG, "not JSON"),
    "a list": (lambda f: (f / CONFIG).write_text("[]"), CONFIG, "not a JSON object"),
    "deep JSON": (lambda f: (f / CONFIG).write_text("[" * 100_000), CONFIG, "not JSON"),
    "another method": (lambda f: change_config(f, peft_type="IA3"), CONFIG, "IA3"),
    "DoRA": (lambda f: change_config(f, use_dora=True), CONFIG, "use_dora"),
    "an endless alpha": (lambda f: change_config(f, lora_alpha=float("inf")), CONFIG, "lora_alpha"),
    "a NaN in the evaluation": (
        lambda f: meta(f, evaluation={"loss": float("nan")}), META, "evaluation"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
async def test_a_bad_directory_is_refused_with_file_and_problem_and_the_champion_serves_on(rig: Rig, name: str) -> None:
    champion = await rig.champion()
    folder = write_adapter(rig.home / "incoming" / "bad", rig.base.shapes, seed=99)
    spoil, file, problem = FAULTS[name]
    spoil(folder)

    info = await refused(rig.stub.RegisterAdapter(pb.RegisterAdapterRequest(role=ROLE, path="incoming/bad")))

    assert info.reason == "ADAPTER_INVALID"
    assert info.metadata["file"] == file
    assert problem in info.metadata["problem"]
    assert (await rig.state()).champion == champion
    assert visible(rig) == ["v000001"]


def visible(rig: Rig) -> list[str]:
    """Everything below the adapters' folder but the versions' own files."""
    found = [p.name for p in (rig.home / "adapters").iterdir() if p.name != ROLE]
    return sorted(found + [p.name for p in (rig.home / "adapters" / ROLE).iterdir()])


@pytest.mark.parametrize(
    "path",
    [
        "incoming/nothing",
        "../outside",
        "incoming/../../outside",
        "/etc",
        "",
        "incoming/a\nb",
        ".",
        "linked/a1",
        "linked",
    ],
)
async def test_paths_that_are_not_inside_are_refused(rig: Rig, path: str) -> None:
    await rig.register()
    write_adapter(rig.home.parent / "outside", rig.base.shapes)
    (rig.home / "linked").symlink_to(rig.home / "incoming")

    info = await refused(rig.stub.RegisterAdapter(pb.RegisterAdapterRequest(role=ROLE, path=path)))

    assert info.reason == ("ADAPTER_INVALID" if path else "MISSING_FIELD")


async def test_absolute_paths_inside_and_paths_below_the_adapters_folder_are_taken(rig: Rig) -> None:
    absolute = write_adapter(rig.home / "incoming" / "x", rig.base.shapes, seed=1)
    write_adapter(rig.home / "adapters" / "handed" / "y", rig.base.shapes, seed=2)

    first = await rig.stub.RegisterAdapter(pb.RegisterAdapterRequest(role=ROLE, path=str(absolute)))
    second = await rig.stub.RegisterAdapter(pb.RegisterAdapterRequest(role=ROLE, path="handed/y"))

    assert [first.id, second.id] == ["implementer-v000001", "implementer-v000002"]


@pytest.mark.parametrize("role", ["../x", "A", "state", "a/b"])
async def test_odd_roles_are_refused(rig: Rig, role: str) -> None:
    info = await refused(rig.stub.RegisterAdapter(pb.RegisterAdapterRequest(role=role, path="incoming/a1")))

    assert info.reason == "INVALID_FIELD"


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """The disk's end, as the kernel can play it without rights: a write beyond the size fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_a_full_disk_leaves_nothing_half_behind(rig: Rig) -> None:
    """FAULTS 33."""
    await rig.champion()
    write_adapter(rig.home / "incoming" / "big", rig.base.shapes, layers=30, seed=5)
    request = pb.RegisterAdapterRequest(role=ROLE, path="incoming/big")
    with files_no_larger_than(100_000):
        info = await refused(rig.stub.RegisterAdapter(request))

    assert info.reason == "STORE_FULL"
    assert visible(rig) == ["v000001"]
    adapters = await rig.stub.ListAdapters(pb.ListAdaptersRequest())
    assert len(adapters.adapters) == 1
    assert (await rig.stub.RegisterAdapter(request)).id == "implementer-v000002"


async def test_the_tokenizer_goes_with_a_version_and_unknown_files_do_not(rig: Rig) -> None:
    folder = write_adapter(rig.home / "incoming" / "full", rig.base.shapes)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "training.log").write_text("loss")

    adapter = await rig.stub.RegisterAdapter(pb.RegisterAdapterRequest(role=ROLE, path="incoming/full"))

    names = {p.name for p in (rig.home / "adapters" / adapter.path).iterdir()}
    assert "tokenizer.json" in names
    assert "training.log" not in names


def test_the_shapes_are_those_of_the_couriers_file(base: BaseModel) -> None:
    assert len(base.shapes) == 30 * 7
    assert base.shapes["model.layers.0.self_attn.k_proj"] == (192, 576)
    assert base.shapes["model.layers.29.mlp.down_proj"] == (576, 1536)
    assert base.is_called("HuggingFaceTB/SmolLM2-135M-Instruct")
    assert base.is_called("courier")
    assert not base.is_called("HuggingFaceTB/SmolLM2-360M-Instruct")


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("a/SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2-135m-instruct"),
        ("Model-F16", "model"),
        ("x.IQ4_XS", "x"),
        ("m", "m"),
    ],
)
def test_quantization_and_owner_are_no_part_of_a_name(name: str, plain: str) -> None:
    assert plain_name(name) == plain


def test_without_shapes_of_the_base_only_consistency_is_asked_for(tmp_path: Path) -> None:
    shapes = {"model.layers.0.self_attn.q_proj": (4096, 4096)}
    good = write_adapter(tmp_path / "good", shapes, modules=("q_proj",), base_model_name_or_path="owner/remote-7b")
    remote = BaseModel("courier", frozenset({"remote-7b"}))

    assert check_directory(good, remote).rank == 8
    change_config(good, r=4)
    with pytest.raises(MeshError, match="rank 8"):
        check_directory(good, remote)


def test_a_rank_pattern_holds_for_its_modules(base: BaseModel, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", base.shapes, layers=1, modules=("q_proj",), r=2, rank_pattern={"q_proj": 8})

    assert check_directory(folder, base).rank == 2


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 400), st.integers(0, 255))
def test_a_header_with_any_byte_changed_is_read_whole_or_refused(
    tmp_path_factory: pytest.TempPathFactory, at: int, value: int
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / WEIGHTS
    save_file({"a": np.ones((3, 5), np.float32), "b": np.zeros((2, 2), np.float16)}, path)
    data = bytearray(path.read_bytes())
    data[at % len(data)] = value
    path.write_bytes(data)

    try:
        tensors = read_header(path)
    except BrokenFile:
        return
    assert sum(t.size for t in tensors) + min(t.start for t in tensors) == len(data)
    assert first_infinite(path, tensors) in (None, *(t.name for t in tensors))


def test_infinities_are_found_in_every_type_and_place(tmp_path: Path) -> None:
    path = tmp_path / WEIGHTS
    for dtype in (np.float32, np.float16):
        for value in (np.nan, np.inf, -np.inf):
            for at in (0, 4999):
                weights = np.full(5000, np.finfo(dtype).max, dtype)
                save_file({"a": weights}, path)
                assert first_infinite(path, read_header(path)) is None
                weights[at] = value
                save_file({"a": weights}, path)
                assert first_infinite(path, read_header(path)) == "a"


def test_copies_of_a_killed_process_are_swept_an_hour_later(tmp_path: Path) -> None:
    from hivemind.servers.adapter_registry.versions import Versions

    old, new = tmp_path / ".incoming-old", tmp_path / ".incoming-new"
    for folder in (old, new):
        folder.mkdir()
        (folder / WEIGHTS).write_bytes(b"half")
    os.utime(old, (1, 1))

    Versions(tmp_path).sweep()

    assert not old.exists()
    assert new.exists()
    shutil.rmtree(new)
