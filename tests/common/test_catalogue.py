"""The model catalogue: hivemind.toml and API keys."""

from pathlib import Path

import pytest

from hivemind.servers.common.catalogue import CatalogueError, load_catalogue
from tests.support.mesh import ROOT

MASTER = (
    '[models.master]\nendpoints = [{ base_url = "https://api.example.com/v1/", model = "big", api_key_env = "KEY" }]\n'
)


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "hivemind.toml"
    file.write_text(text)
    return file


def test_without_a_file_the_courier_is_the_embedded_one(tmp_path: Path) -> None:
    catalogue = load_catalogue(tmp_path / "absent.toml", {"HIVEMIND_ENGINE_URL": "http://127.0.0.1:9/v1"})

    assert list(catalogue.models) == ["courier"]
    assert catalogue.models["courier"].endpoints[0].base_url == "http://127.0.0.1:9/v1"
    assert catalogue.models["courier"].free


def test_keys_fill_the_aliases_that_the_file_leaves_open(tmp_path: Path) -> None:
    keys = {"OPENAI_API_KEY": "a", "DEEPSEEK_API_KEY": "b", "KEY": "c"}

    models = load_catalogue(written(tmp_path, MASTER), keys).models

    assert models["master"].endpoints[0].model == "big"
    assert models["master"].endpoints[0].api_key == "c"
    assert models["arbiter"].endpoints[0].model == "gpt-4o"
    assert models["oracle"].endpoints[0].model == "deepseek-chat"
    assert models["oracle"].input_price > 0


def test_a_key_never_shows(tmp_path: Path) -> None:
    models = load_catalogue(written(tmp_path, MASTER), {"KEY": "top-secret"}).models

    assert "top-secret" not in repr(models)


def test_a_price_is_micro_usd_a_token_and_costs_round_up(tmp_path: Path) -> None:
    text = MASTER + "input_price = 2.5\noutput_price = 10.0\n"

    assert load_catalogue(written(tmp_path, text), {}).models["master"].cost_micros(3, 1) == 18


def test_a_courier_url_stands_for_the_engine(tmp_path: Path) -> None:
    courier = load_catalogue(tmp_path / "absent", {"HIVEMIND_COURIER": "https://courier.example/v1"}).models["courier"]

    assert courier.endpoints[0].host == "courier.example"


def test_only_the_meshs_own_courier_is_a_server_of_adapters_unasked(tmp_path: Path) -> None:
    own = load_catalogue(tmp_path / "absent", {}).models["courier"]
    elsewhere = load_catalogue(tmp_path / "absent", {"HIVEMIND_COURIER": "https://courier.example/v1"}).models[
        "courier"
    ]
    table = "[models.courier]\n" + MASTER.partition("\n")[2]
    remote = load_catalogue(written(tmp_path, table), {}).models["courier"]
    vllm = load_catalogue(written(tmp_path, table + 'adapters = "vllm"\n'), {}).models["courier"]

    assert [m.adapters for m in (own, elsewhere, remote, vllm)] == ["embedded", "", "", "vllm"]
    with pytest.raises(CatalogueError, match=r"models\.courier\.adapters"):
        load_catalogue(written(tmp_path, table + 'adapters = "sglang"\n'), {})


def test_the_example_in_the_repository_is_right() -> None:
    assert "master" in load_catalogue(ROOT / "hivemind.example.toml", {}).models


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        (MASTER + "price = 3\n", 3, "models.master.price"),
        (MASTER + "\n[models.other]\ncontext_tokens = -1\n", 5, "models.other.context_tokens"),
        ('[models.m]\nendpoints = [{ base_url = "ftp://x", model = "m" }]\n', 2, "base_url"),
        ("[models.m]\nendpoints = []\n", 2, "models.m.endpoints"),
        (MASTER + "input_price = nan\n", 3, "models.master.input_price"),
        (MASTER + 'timeouts = { idle_s = "x" }\n', 3, "timeouts.idle_s"),
    ],
)
def test_a_wrong_key_is_named_with_its_line(tmp_path: Path, text: str, line: int, key: str) -> None:
    with pytest.raises(CatalogueError, match=f"line {line}: .*{key}"):
        load_catalogue(written(tmp_path, text), {})


def test_what_is_not_toml_is_named_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(CatalogueError, match="line 2"):
        load_catalogue(written(tmp_path, "[models.master]\nendpoints = = 3\n"), {})
