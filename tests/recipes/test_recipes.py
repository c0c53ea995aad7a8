"""Every recipe can be planned at every profile, and its pages agree with its results."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from hubmerge.reproduce.expected import check_results
from hubmerge.reproduce.plan import make_plan
from hubmerge.reproduce.results_from_units import claims_from_rows
from hubmerge.reproduce.source_units import FOLDER_PREFIX
from hubmerge.results import overall_verdict, read_results
from hubmerge.specs.recipe import read_recipe
from hubmerge.tasks.lookup import catalog

ROOT = Path(__file__).parents[2]
FOLDERS = sorted(path.parent for path in (ROOT / "recipes").glob("*/recipe.yaml"))
IN_PAPER = [folder for folder in FOLDERS if "paper" in read_recipe(folder).suites]
PLANNED = [(folder, profile) for folder in FOLDERS for profile in read_recipe(folder).suites]
RAN = [folder for folder in FOLDERS if (folder / "results.json").is_file()]


def name(folder: Path) -> str:
    return folder.name


def test_every_figure_and_table_has_a_recipe() -> None:
    assert {folder.name for folder in IN_PAPER} == {
        "fft-vision", "lora-vision", "moe-vision", "early-stop", "fft-nlp", "lora-nlp",
        "model-scale", "lora-rank", "difficulty", "prune-hardest", "forgetting",
        "per-task-steps", "anneal-modes",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("folder", "profile"), PLANNED, ids=lambda part: getattr(part, "name", part)
)
def test_a_recipe_can_be_planned(folder: Path, profile: str) -> None:
    recipe = read_recipe(folder)
    recipe_plan = make_plan(recipe, profile)
    keys = [unit.key for unit in recipe_plan.units]
    assert len(keys) == len(set(keys)) > 0
    named = {task for task in recipe_plan.settings.tasks if not task.startswith(FOLDER_PREFIX)}
    assert named <= catalog().keys()
    index = {key: number for number, key in enumerate(keys)}
    assert all(
        index[need.key] < index[unit.key]
        for unit in recipe_plan.units
        for need in unit.needs.values()
    )
    claims = [claim.name for claim in recipe.claims]
    assert len(claims) == len(set(claims))


@pytest.mark.parametrize("folder", FOLDERS, ids=name)
def test_the_mini_and_smoke_profiles_need_no_network(folder: Path) -> None:
    recipe = read_recipe(folder)
    assert recipe.settings_for("mini").hub == recipe.settings_for("smoke").hub == "local"
    assert recipe.settings_for("mini").seeds == (0, 1, 2)


@pytest.mark.parametrize("folder", IN_PAPER, ids=name)
def test_the_paper_profile_is_pinned(folder: Path) -> None:
    paper = read_recipe(folder).settings_for("paper")
    bases = [paper.base, *(variant.base for variant in paper.variants if variant.base)]
    assert paper.hub is None
    assert all(len(base.partition("@")[2]) == 40 for base in bases)
    assert paper.seeds == (0, 1, 2)


@pytest.mark.parametrize("folder", RAN, ids=name)
def test_verdicts_agree_with_the_results(folder: Path) -> None:
    results = read_results(folder)
    assert results.recipe == folder.name
    recipe = read_recipe(folder)
    judged = claims_from_rows(recipe, results.profile, results.rows)
    assert results.claims == judged
    written = json.loads((folder / "results.json").read_bytes())
    assert [claim["verdict"] for claim in written["claims"]] == [claim.verdict for claim in judged]
    assert written["verdict"] == overall_verdict([claim.verdict for claim in judged])
    assert check_results(results, folder / "expected.json") == []
    for chart in results.charts:
        assert (folder / f"{chart.name}.png").is_file()
        assert (folder / f"{chart.name}.svg").is_file()


def test_results_of_earlier_versions_are_read(tmp_path: Path) -> None:
    text = (RAN[0] / "results.json").read_text(encoding="utf-8")
    earlier = text.replace('"statement":', '"says":').replace('"explanation":', '"because":')
    (tmp_path / "results.json").write_text(earlier, encoding="utf-8")
    assert earlier != text
    assert read_results(tmp_path) == read_results(RAN[0])


def test_the_pages_are_up_to_date() -> None:
    sys.path.insert(0, str(ROOT))
    from scripts.reproduction import render_pages

    stale = [
        path for path, text in render_pages().items() if path.read_text(encoding="utf-8") != text
    ]
    assert not stale
