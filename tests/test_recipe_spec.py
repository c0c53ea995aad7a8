"""A recipe is read with its suite, and all problems are reported at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hubmerge.errors import UnknownName, UsageError
from hubmerge.specs.recipe import read_recipe

SETTING = {
    "hub": "local",
    "base": "hubmerge/tiny-clip",
    "tasks": ["mini-mnist", "mini-texture"],
    "seeds": [0],
    "last": 8,
    "steps": [2, 8],
    "train": {"batch": 8, "lr": 0.001},
    "estimate": {"seconds_per_step": 0.1, "seconds_per_merge": 1, "bytes_per_step": 1000},
}
RECIPE: dict[str, Any] = {
    "title": "A title",
    "suite": "own",
    "where": "figure 1",
    "statement": "It falls.",
    "measures": [{"of": "experts"}],
    "claims": [{"name": "falls", "statement": "It falls.", "a": {"of": "experts"}}],
}


def write(folder: Path, recipe: dict[str, Any], suite: dict[str, Any]) -> Path:
    for path, text in (("own/recipe.yaml", recipe), ("suites/own.yaml", suite)):
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(json.dumps(text))  # which is YAML, too
    return folder / "own"


def test_a_recipe_is_named_by_its_folder_and_overrides_its_suite(tmp_path: Path) -> None:
    own = {"profiles": {"mini": {"last": 4, "steps": [4], "train": {"lr": 0.1}}}}
    recipe = read_recipe(write(tmp_path, RECIPE | own, {"mini": SETTING, "smoke": SETTING}))
    assert recipe.name == "own"
    assert recipe.settings_for("mini").train == {"batch": 8, "lr": 0.1}
    assert recipe.settings_for("mini").steps == (4,)
    assert recipe.settings_for("smoke").steps == (2, 8)


def test_an_unknown_profile_is_reported_with_similar_names(tmp_path: Path) -> None:
    recipe = read_recipe(write(tmp_path, RECIPE, {"mini": SETTING}))
    with pytest.raises(UnknownName, match="mino") as raised:
        recipe.settings_for("mino")
    assert raised.value.hint == "Did you mean mini?"


def test_all_problems_are_reported_together(tmp_path: Path) -> None:
    wrong = {"measures": [{"of": "merges"}], "claims": [], "tilte": "A title"}
    folder = write(tmp_path, RECIPE | wrong, {"mini": SETTING})
    with pytest.raises(UsageError) as raised:
        read_recipe(folder)
    text = " ".join(raised.value.problems)
    assert "merges needs `methods`" in text
    assert "claims" in text
    assert "did you mean 'title'" in text


def test_a_step_beyond_the_run_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, RECIPE, {"mini": SETTING | {"steps": [2, 16]}})
    with pytest.raises(UsageError, match="`steps` has 16, but runs end at 8"):
        read_recipe(folder)


def test_a_folder_without_a_recipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="There is no recipe at"):
        read_recipe(tmp_path)


def test_a_profile_that_is_missing_in_the_suite_is_refused(tmp_path: Path) -> None:
    own = {"profiles": {"minni": {"steps": [2]}}}
    with pytest.raises(UnknownName, match="minni"):
        read_recipe(write(tmp_path, RECIPE | own, {"mini": SETTING}))


@pytest.mark.parametrize("at", [128, "frist"])
def test_an_invalid_value_of_at_is_refused(tmp_path: Path, at: object) -> None:
    claim = {"name": "falls", "statement": "It falls.", "a": {"of": "experts", "at": at}}
    with pytest.raises(UsageError, match="`at` is best, first or last"):
        read_recipe(write(tmp_path, RECIPE | {"claims": [claim]}, {"mini": SETTING}))


def test_two_claims_with_one_name_are_refused(tmp_path: Path) -> None:
    claims = [*RECIPE["claims"], *RECIPE["claims"]]
    with pytest.raises(UsageError, match="two claims are called 'falls'"):
        read_recipe(write(tmp_path, RECIPE | {"claims": claims}, {"mini": SETTING}))


def test_a_folder_with_an_invalid_name_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, RECIPE, {"mini": SETTING})
    odd = folder.rename(folder.with_name("a\nname"))
    with pytest.raises(UsageError, match="is not valid for a recipe"):
        read_recipe(odd)


def test_the_keys_of_earlier_versions_are_read(tmp_path: Path) -> None:
    earlier = {**RECIPE, "says": "It falls.", "because": "It is small."}
    earlier |= {"claims": [{"name": "falls", "says": "It falls.", "a": {"of": "experts"}}]}
    del earlier["statement"]
    recipe = read_recipe(write(tmp_path, earlier, {"mini": SETTING}))
    assert recipe.statement == recipe.claims[0].statement == "It falls."
    assert recipe.explanation == "It is small."
