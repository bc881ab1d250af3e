"""hivemind doctor: parts that are optional."""

import importlib.util
from pathlib import Path

import pytest

from hivemind.cli.doctor import Part, examine


def neo4j(tmp_path: Path, environment: dict[str, str]) -> Part:
    return next(p for p in examine(tmp_path, tmp_path / "hivemind.toml", environment) if p.name == "neo4j")


def test_neo4j_is_optional_and_its_driver_is_named_where_it_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configured = {"HIVEMIND_NEO4J_URL": "bolt://127.0.0.1:7687"}
    real = importlib.util.find_spec

    assert neo4j(tmp_path, configured).present
    assert not neo4j(tmp_path, {}).present
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "neo4j" else real(name))
    missing = neo4j(tmp_path, configured)

    assert (missing.present, missing.needed) == (False, False)
    assert "hivemind[neo4j]" in missing.get
