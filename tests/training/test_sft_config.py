from dataclasses import replace
from pathlib import Path

import pytest

from hivemind.training.sft_config import (
    CPU_RECIPE,
    ConfigError,
    DataChoice,
    RecipeChoice,
    SftConfig,
    check,
    from_json,
    read_config,
    to_json,
    write_config,
)


@pytest.fixture
def config(tmp_path: Path) -> SftConfig:
    data = tmp_path / "data.jsonl"
    data.write_text("{}\n")
    return SftConfig(home=str(tmp_path), data=DataChoice(paths=(str(data),)))


def test_a_configuration_is_read_back_as_it_was_written(config: SftConfig, tmp_path: Path) -> None:
    changed = replace(config, recipe=RecipeChoice(rank=32, learning_rate=1e-4), seed=7, threads=3)
    write_config(tmp_path / "runs" / "a", changed)
    assert read_config(tmp_path / "runs" / "a") == changed


@pytest.mark.parametrize(
    ("recipe", "field"),
    [
        (RecipeChoice(rank=7), "recipe.rank"),
        (RecipeChoice(rank=264), "recipe.rank"),
        (RecipeChoice(learning_rate=-1), "recipe.learning_rate"),
        (RecipeChoice(learning_rate=0), "recipe.learning_rate"),
        (RecipeChoice(learning_rate=float("nan")), "recipe.learning_rate"),
        (RecipeChoice(max_steps=0), "recipe.max_steps"),
        (RecipeChoice(epochs=float("inf")), "recipe.epochs"),
    ],
)
def test_a_bad_recipe_is_refused_with_its_field(config: SftConfig, recipe: RecipeChoice, field: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check(replace(config, recipe=recipe))
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"base": "gpt-17"}, "base"),
        ({"base_weights": "/nowhere/model.gguf"}, "base_weights"),
        ({"champion": "/nowhere"}, "champion"),
        ({"role": "../up"}, "role"),
        ({"data": DataChoice()}, "data"),
        ({"data": DataChoice(paths=("/nowhere.jsonl",))}, "data.paths"),
        ({"data": DataChoice(mixture="other")}, "data.mixture"),
        ({"data": DataChoice(platinum="/nowhere")}, "data.platinum"),
    ],
)
def test_what_a_run_cannot_find_is_refused_with_its_field(config: SftConfig, changes: dict, field: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(ConfigError) as refused:
        check(replace(config, **changes))
    assert refused.value.field == field


@pytest.mark.parametrize("text", ["", "{", "[]", '{"home": "/x", "colour": 1}', '{"home": "/x", "schema_version": 2}'])
def test_a_text_that_is_no_configuration_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        from_json(text)


def test_a_run_without_a_configuration_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config(tmp_path)


def test_a_recipe_is_that_of_the_back_end_where_nothing_is_laid_down(config: SftConfig) -> None:
    assert from_json(to_json(config)).recipe.on("cpu") == CPU_RECIPE


def test_a_batch_is_a_whole_number_of_micro_batches_and_alpha_follows_the_rank() -> None:
    recipe = RecipeChoice(rank=32, batch_size=10, micro_batch=4).on("unsloth")
    assert (recipe.micro_batch, recipe.alpha) == (2, 32)
