"""`hubmerge run`: plans, what is known already, failures, verdicts. Units of a small recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner
from typer.testing import Result as Answer

from hubmerge.cli.app import app
from hubmerge.reproduce.code_digest import code_version
from hubmerge.reproduce.combined_plan import Order, order
from hubmerge.reproduce.store import Store
from tests.cli.small_recipe import write_recipes


@pytest.fixture
def recipes(tmp_path: Path) -> Path:
    return write_recipes(tmp_path / "recipes")


def called(recipes: Path, *words: object, profile: str = "smoke") -> Answer:
    said = ["run", str(recipes / "falling"), "--profile", profile, *map(str, words)]
    work = ["--work", str(recipes.parent / "work")]
    return CliRunner().invoke(app, [*said, *([] if "--work" in said else work)])


def measured(recipes: Path, at_8: float = 0.6) -> Order:
    """Every unit known: averages of 0.7 at 2 steps; at 8 as said, a point less for seed 1."""
    ordered = order([recipes / "falling"], "smoke")
    store = Store(recipes.parent / "work", code_version())
    (store.folder / "home" / "hub").mkdir(parents=True, exist_ok=True)
    for unit in ordered.units:
        rows = []
        if unit.kind == "merge":
            value = 0.7 if unit.params["step"] == 2 else at_8 - 0.01 * ("seed 1" in unit.about)
            rows = [{"value": value, "validation": value, "note": "", "stderr": 0.01}]
        store.put(unit, {"rows": rows}, 2.0)
    return ordered


def test_a_dry_run_shows_the_plan_and_writes_nothing(recipes: Path) -> None:
    answer = called(recipes, recipes / "other", "--dry-run", "--json")
    assert answer.exit_code == 0, answer.output
    said = json.loads(answer.stdout)
    assert said["recipes"] == ["falling", "other"]
    kinds = {one["kind"]: one for one in said["kinds"]}  # of both recipes, which share all
    assert (kinds["train"]["units"], kinds["train"]["steps"]) == (4, 32)
    assert (kinds["train"]["seconds"], kinds["merge"]["seconds"]) == (16.0, 16.0)
    assert not (recipes.parent / "work").exists()
    table = called(recipes, "--dry-run").stdout
    assert "would make for falling, profile smoke" in table
    assert "(assumed)" in table


def test_names_that_nobody_knows_are_answered_with_near_ones(recipes: Path) -> None:
    assert "Did you mean smoke?" in called(recipes, profile="smok").stderr
    key = order([recipes / "falling"], "smoke").units[0].key
    near = called(recipes, "--only", f"{key[:-1]}x", "--dry-run")
    assert (near.exit_code, f"Did you mean {key}?" in near.stderr) == (2, True)
    assert "There is no recipe" in called(recipes, recipes / "none", "--dry-run").stderr


def test_what_is_known_is_told_without_running_anything(recipes: Path) -> None:
    measured(recipes)
    answer = called(recipes, "--json")
    assert answer.exit_code == 0, answer.output
    said = json.loads(answer.stdout)
    (told,) = said["recipes"]
    assert (said["made"], told["verdict"]) == ([], "reproduced")
    results = json.loads(Path(told["results"]).read_text())
    assert results["claims"][0]["values"] == pytest.approx([0.1, 0.11])
    assert results["provenance"]["code"] == code_version()
    assert results["provenance"]["units"]["merge"] == 4
    folder = recipes.parent / "work" / "falling-smoke"
    assert {path.name for path in folder.iterdir()} == {
        "results.json", "accuracy.png", "accuracy.svg"
    }  # fmt: skip
    assert "+10.5 ± 0.5" in called(recipes).stdout


def test_a_number_outside_its_band_fails_a_check(recipes: Path) -> None:
    from hubmerge.reproduce.expected import write_expected
    from hubmerge.results import read_results

    measured(recipes)
    called(recipes)
    results = read_results(recipes.parent / "work" / "falling-smoke")
    write_expected(recipes / "falling", results)
    assert called(recipes, "--check").exit_code == 0
    measured(recipes, at_8=0.2)
    assert called(recipes).exit_code == 0
    answer = called(recipes, "--check")
    assert answer.exit_code == 1
    assert "falling: " in answer.stderr
    assert "Find out why" in answer.stderr


def test_one_unit_alone_needs_what_it_needs(recipes: Path) -> None:
    merge = next(unit for unit in order([recipes / "falling"], "smoke").units if unit.needs)
    answer = called(recipes, "--only", merge.key)
    assert answer.exit_code == 1
    assert "1 of 1 units failed." in answer.stderr
    assert "not made yet" in answer.stdout


@pytest.mark.slow
def test_a_failure_is_told_with_the_command_that_makes_just_it(recipes: Path) -> None:
    """A base that no Hub has: a real worker asks the embedded Hub for it."""
    suite = recipes / "suites" / "small.yaml"
    suite.write_text(suite.read_text().replace("hubmerge/tiny-clip", "nobody/nothing"))
    answer = called(recipes, "--debug")
    ordered = order([recipes / "falling"], "smoke")
    base = ordered.units[0]
    assert answer.exit_code == 1
    assert "nobody/nothing" in answer.stdout
    assert f"1 of {len(ordered.units)} units failed, and 8 that need them" in answer.stderr
    assert f"--work {recipes.parent / 'work'} --only {base.key}" in answer.stderr
    assert "falling is not told: 9 of its units are missing." in answer.stderr
    assert (recipes.parent / "work" / "home" / "hub").is_dir()  # and not the user's own


def test_two_runs_of_one_folder_do_not_mix(recipes: Path) -> None:
    with Store(recipes.parent / "work", "c").alone():
        answer = called(recipes)
    assert (answer.exit_code, "Another hubmerge runs recipes" in answer.stderr) == (75, True)


def test_a_launch_is_written_for_what_is_missing(recipes: Path, tmp_path: Path) -> None:
    local = called(recipes, "--emit", "slurm")
    assert "the embedded Hub of one machine" in local.stderr
    nobody = called(recipes, "--emit", "slurm", profile="paper")
    assert "Write --owner NAME" in nobody.stderr
    for kind in ("slurm", "hf-jobs"):
        script = tmp_path / f"{kind}.sh"
        words: tuple[Any, ...] = ("--emit", kind, "--owner", "me", "--out", script)
        assert called(recipes, *words, profile="paper").exit_code == 0
        keys = [unit.key for unit in order([recipes / "falling"], "paper").units]
        assert all(script.read_text().count(key) == 1 for key in keys)
