"""Which training data may be named."""

from pathlib import Path

import pytest

from hivemind.servers.common.errors import MeshError
from hivemind.servers.trainer.data_paths import located


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    (home / "incoming" / "deep").mkdir(parents=True)
    (home / "incoming" / "deep" / "facts.jsonl").write_text("{}\n")
    (tmp_path / "secret.jsonl").write_text("{}\n")
    (home / "leads_out").symlink_to(tmp_path)
    (home / "leads_in").symlink_to(home / "incoming")
    return home


def test_files_and_folders_inside_the_state_folder_are_found_relative_and_absolute(home: Path) -> None:
    file = home / "incoming" / "deep" / "facts.jsonl"

    assert located(["incoming/deep/facts.jsonl", str(file), "incoming"], home) == [file, file, home / "incoming"]


@pytest.mark.parametrize(
    "path",
    [
        "", "..", "../secret.jsonl", "incoming/../../secret.jsonl", "/etc/passwd", "absent.jsonl", "leads_out",
        "leads_out/secret.jsonl", "leads_in", "leads_in/deep", "a" * 300,
    ],
)  # fmt: skip
def test_all_else_is_refused_by_the_name_of_its_field(home: Path, path: str) -> None:
    with pytest.raises(MeshError) as refused:
        located(["incoming", path], home)

    assert refused.value.reason == "INVALID_FIELD"
    assert refused.value.violations[0].field == "data.paths[1]"


def test_a_folder_that_holds_a_link_out_is_refused_and_one_with_a_link_in_is_taken(home: Path) -> None:
    (home / "incoming" / "link.jsonl").symlink_to(home / "incoming" / "deep" / "facts.jsonl")
    assert located(["incoming"], home) == [home / "incoming"]
    (home / "incoming" / "deep" / "out.jsonl").symlink_to(home.parent / "secret.jsonl")

    with pytest.raises(MeshError, match="out of HIVEMIND_HOME"):
        located(["incoming"], home)
