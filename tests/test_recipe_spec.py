"""A recipe's YAML is read with its suite, and what is wrong in it is told at once."""

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
    "says": "It falls.",
    "measures": [{"of": "experts"}],
    "claims": [{"name": "falls", "says": "It falls.", "a": {"of": "experts"}}],
}


def write(folder: Path, recipe: dict[str, Any], suite: dict[str, Any]) -> Path:
    for place, said in (("own/recipe.yaml", recipe), ("suites/own.yaml", suite)):
        (folder / place).parent.mkdir(exist_ok=True)
        (folder / place).write_text(json.dumps(said))  # which is YAML, too
    return folder / "own"


def test_a_recipe_is_known_by_its_folder_and_may_set_what_its_suite_says(tmp_path: Path) -> None:
    own = {"profiles": {"mini": {"last": 4, "steps": [4], "train": {"lr": 0.1}}}}
    recipe = read_recipe(write(tmp_path, RECIPE | own, {"mini": SETTING, "smoke": SETTING}))
    assert recipe.name == "own"
    assert recipe.setting("mini").train == {"batch": 8, "lr": 0.1}
    assert recipe.setting("mini").steps == (4,)
    assert recipe.setting("smoke").steps == (2, 8)


def test_a_profile_that_is_not_there_is_told_with_those_that_are(tmp_path: Path) -> None:
    recipe = read_recipe(write(tmp_path, RECIPE, {"mini": SETTING}))
    with pytest.raises(UnknownName, match="mino") as told:
        recipe.setting("mino")
    assert told.value.hint == "Did you mean mini?"


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    wrong = {"measures": [{"of": "merges"}], "claims": [], "tilte": "A title"}
    folder = write(tmp_path, RECIPE | wrong, {"mini": SETTING})
    with pytest.raises(UsageError) as told:
        read_recipe(folder)
    said = " ".join(told.value.problems)
    assert "merges needs `methods`" in said
    assert "claims" in said
    assert "did you mean 'title'" in said


def test_a_step_beyond_the_run_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, RECIPE, {"mini": SETTING | {"steps": [2, 16]}})
    with pytest.raises(UsageError, match="`steps` has 16, and runs end at 8"):
        read_recipe(folder)


def test_a_folder_without_a_recipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="There is no recipe at"):
        read_recipe(tmp_path)


def test_a_profile_that_the_suite_does_not_have_is_refused(tmp_path: Path) -> None:
    own = {"profiles": {"minni": {"steps": [2]}}}
    with pytest.raises(UnknownName, match="minni"):
        read_recipe(write(tmp_path, RECIPE | own, {"mini": SETTING}))


@pytest.mark.parametrize("at", [128, "frist"])
def test_a_part_of_the_steps_that_is_none_is_refused(tmp_path: Path, at: object) -> None:
    claim = {"name": "falls", "says": "It falls.", "a": {"of": "experts", "at": at}}
    with pytest.raises(UsageError, match="`at` is best, first or last"):
        read_recipe(write(tmp_path, RECIPE | {"claims": [claim]}, {"mini": SETTING}))


def test_two_claims_of_one_name_are_refused(tmp_path: Path) -> None:
    claims = [*RECIPE["claims"], *RECIPE["claims"]]
    with pytest.raises(UsageError, match="two claims are called 'falls'"):
        read_recipe(write(tmp_path, RECIPE | {"claims": claims}, {"mini": SETTING}))


def test_a_folder_that_cannot_name_files_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, RECIPE, {"mini": SETTING})
    odd = folder.rename(folder.with_name("a\nname"))
    with pytest.raises(UsageError, match="cannot name a recipe"):
        read_recipe(odd)
