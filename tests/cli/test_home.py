"""Where a mesh keeps what it learns."""

from pathlib import Path

from hivemind.cli.home import checkout, data_folder, data_folders


def test_learnt_data_lies_in_the_checkout_unless_a_home_is_named(tmp_path: Path) -> None:
    root = checkout()
    assert root is not None
    assert data_folder("datasets", {}) == root / "datasets"
    assert data_folder("adapters", {"HIVEMIND_HOME": str(tmp_path)}) == tmp_path / "adapters"


def test_a_named_folder_wins(tmp_path: Path) -> None:
    named = {"HIVEMIND_HOME": "/nowhere", "HIVEMIND_DATASETS": str(tmp_path)}

    assert data_folder("datasets", named) == tmp_path


def test_a_detached_mesh_keeps_the_folders_of_the_command_that_starts_it() -> None:
    chosen = data_folders({})

    assert data_folders({**chosen, "HIVEMIND_HOME": "/nowhere"}) == chosen
