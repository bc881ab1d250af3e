"""Which adapters are held, and what counts as an adapter's name."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivemind.servers.engine.adapter_folder import AdapterFolder
from hivemind.servers.engine.errors import EngineError
from hivemind.servers.engine.gguf_adapter import AdapterBroken
from hivemind.servers.engine.residency import Residency, Resident

sizes = st.integers(min_value=1, max_value=120)


@given(st.lists(st.tuples(st.sampled_from("abcdef"), sizes, st.booleans())))
def test_what_is_held_never_takes_more_than_the_limit(steps: list[tuple[str, int, bool]]) -> None:
    residency, last_used = Residency(100), []
    for name, size, use in steps:
        if use and name in residency:
            residency.touch(name)
        elif size <= 100:
            before = residency.held
            residency.replace(residency.with_added(name, Resident(Path(name), size)))
            gone = [n for n in before if n not in residency]
            assert gone == [n for n in last_used if n in before and n != name][: len(gone)]  # longest ago first
        else:
            with pytest.raises(AdapterBroken, match="ENGINE_ADAPTER_MIB"):
                residency.with_added(name, Resident(Path(name), size))
            continue
        last_used = [*(n for n in last_used if n != name), name]
        assert sum(r.size_bytes for r in residency.held.values()) <= 100
        assert list(residency.held)[-1] == name


def test_a_forgotten_adapter_is_not_held() -> None:
    residency = Residency(100)
    residency.replace({"a": Resident(Path("a"), 1)})
    residency.forget("a")
    residency.forget("b")

    assert "a" not in residency


@given(st.text(max_size=40) | st.from_regex(r"[a-z./-]{1,12}-v[0-9]{6}", fullmatch=True))
def test_no_name_leads_out_of_the_folder(name: str) -> None:
    folder = AdapterFolder(Path("/nowhere/adapters"))

    with pytest.raises(EngineError, match="there is no adapter"):
        folder.path_of(name)


def test_only_versions_with_a_configuration_are_listed(tmp_path: Path) -> None:
    for name in ("implementer/v000001", "implementer/v000002", "foundational/champion_v1", "x/v1"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "adapter_config.json").touch()
    (tmp_path / "implementer/v000003").mkdir()

    assert AdapterFolder(tmp_path).ids() == ["implementer-v000001", "implementer-v000002"]
