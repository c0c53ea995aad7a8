"""`hubmerge run` on a small recipe: plans, known units, failures, verdicts, launch scripts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from hubmerge.reproduce.code_digest import code_version
from hubmerge.reproduce.combined_plan import CombinedPlan, combine_plans
from hubmerge.reproduce.store import ResultStore
from tests.cli.small_recipe import write_recipes
from tests.command_line import run_command


@pytest.fixture
def recipes(tmp_path: Path) -> Path:
    return write_recipes(tmp_path / "recipes")


def run_falling(recipes: Path, *words: object, profile: str = "smoke") -> Result:
    work = ["--work", str(recipes.parent / "work")]
    command = ["run", str(recipes / "falling"), "--profile", profile, *work, *map(str, words)]
    return run_command(*command, hub=None)


def store_results(recipes: Path, at_8: float = 0.6) -> CombinedPlan:
    """Store a result of each unit: averages are 0.7 at step 2, `at_8` at 8 (seed 1: 0.01 less)."""
    ordered = combine_plans([recipes / "falling"], "smoke")
    store = ResultStore(recipes.parent / "work", code_version())
    (store.folder / "home" / "hub").mkdir(parents=True, exist_ok=True)
    for unit in ordered.units:
        rows = []
        if unit.kind == "merge":
            value = 0.7 if unit.params["step"] == 2 else at_8 - 0.01 * ("seed 1" in unit.about)
            rows = [{"value": value, "validation": value, "note": "", "stderr": 0.01}]
        store.put(unit, {"rows": rows}, 2.0)
    return ordered


def test_a_dry_run_shows_the_plan_and_writes_nothing(recipes: Path) -> None:
    result = run_falling(recipes, recipes / "other", "--dry-run", "--json")
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)
    assert plan["recipes"] == ["falling", "other"]
    kinds = {costs["kind"]: costs for costs in plan["kinds"]}  # both recipes share all units
    assert (kinds["train"]["units"], kinds["train"]["steps"]) == (4, 32)
    assert (kinds["train"]["seconds"], kinds["merge"]["seconds"]) == (16.0, 16.0)
    assert not (recipes.parent / "work").exists()
    table = run_falling(recipes, "--dry-run").stdout
    assert "would run for falling, profile smoke" in table
    assert "(assumed)" in table


def test_unknown_names_are_answered_with_similar_ones(recipes: Path) -> None:
    assert "Did you mean smoke?" in run_falling(recipes, profile="smok").stderr
    key = combine_plans([recipes / "falling"], "smoke").units[0].key
    similar = run_falling(recipes, "--only", f"{key[:-1]}x", "--dry-run")
    assert (similar.exit_code, f"Did you mean {key}?" in similar.stderr) == (2, True)
    assert "There is no recipe" in run_falling(recipes, recipes / "none", "--dry-run").stderr


def test_results_of_known_units_are_written_without_running_anything(recipes: Path) -> None:
    store_results(recipes)
    result = run_falling(recipes, "--json")
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    (recipe,) = data["recipes"]
    assert (data["made"], recipe["verdict"]) == ([], "untested")  # of a smoke run
    results = json.loads(Path(recipe["results"]).read_text())
    assert results["claims"][0]["values"] == pytest.approx([0.1, 0.11])
    assert results["provenance"]["code"] == code_version()
    assert results["provenance"]["units"]["merge"] == 4
    folder = recipes.parent / "work" / "falling-smoke"
    assert {path.name for path in folder.iterdir()} == {
        "results.json", "accuracy.png", "accuracy.svg"
    }  # fmt: skip
    # 10 and 11 points: 10.5, standard error 0.5, 12.7 of them on each side.
    table = run_falling(recipes).stdout
    assert "+10.5 points (+4.1 to +16.9)" in table
    assert "not tested" in table


def test_check_fails_for_a_number_outside_its_band(recipes: Path) -> None:
    from hubmerge.reproduce.expected import write_expected
    from hubmerge.results import read_results

    store_results(recipes)
    run_falling(recipes)
    results = read_results(recipes.parent / "work" / "falling-smoke")
    write_expected(recipes / "falling", results)
    assert run_falling(recipes, "--check").exit_code == 0
    store_results(recipes, at_8=0.2)
    assert run_falling(recipes).exit_code == 0
    result = run_falling(recipes, "--check")
    assert result.exit_code == 1
    assert "falling: " in result.stderr
    assert "Find out why" in result.stderr


def test_a_single_unit_fails_without_the_units_it_needs(recipes: Path) -> None:
    merge = next(unit for unit in combine_plans([recipes / "falling"], "smoke").units if unit.needs)
    result = run_falling(recipes, "--only", merge.key)
    assert result.exit_code == 1
    assert "1 of 1 units failed." in result.stderr
    assert "has no result yet" in result.stdout


@pytest.mark.slow
def test_a_failure_is_reported_with_the_command_that_runs_only_it(recipes: Path) -> None:
    """The base is on no Hub: a real worker asks the embedded Hub for it."""
    suite = recipes / "suites" / "small.yaml"
    suite.write_text(suite.read_text().replace("hubmerge/tiny-clip", "nobody/nothing"))
    result = run_falling(recipes, "--debug")
    ordered = combine_plans([recipes / "falling"], "smoke")
    base = ordered.units[0]
    assert result.exit_code == 1
    assert "nobody/nothing" in result.stdout
    assert f"1 of {len(ordered.units)} units failed, and 8 that need them" in result.stderr
    assert f"--work {recipes.parent / 'work'} --only {base.key}" in result.stderr
    assert "falling has no results yet: 9 of its units are missing." in result.stderr
    assert (recipes.parent / "work" / "home" / "hub").is_dir()  # not the user's own Hub


def test_a_second_run_in_the_same_folder_is_refused(recipes: Path) -> None:
    with ResultStore(recipes.parent / "work", "c").lock_all():
        result = run_falling(recipes)
    assert (result.exit_code, "Another hubmerge runs recipes" in result.stderr) == (75, True)


def test_a_launch_script_is_written_for_the_missing_units(recipes: Path, tmp_path: Path) -> None:
    local = run_falling(recipes, "--emit", "slurm")
    assert "the embedded Hub of one machine" in local.stderr
    without_owner = run_falling(recipes, "--emit", "slurm", profile="paper")
    assert "Write --owner NAME" in without_owner.stderr
    for kind in ("slurm", "hf-jobs"):
        script = tmp_path / f"{kind}.sh"
        words: tuple[Any, ...] = ("--emit", kind, "--owner", "me", "--out", script)
        assert run_falling(recipes, *words, profile="paper").exit_code == 0
        keys = [unit.key for unit in combine_plans([recipes / "falling"], "paper").units]
        assert all(script.read_text().count(key) == 1 for key in keys)
