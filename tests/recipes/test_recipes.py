"""Every recipe can be laid out at every profile, and its pages say what it found."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from hubmerge.reproduce.expected import check
from hubmerge.reproduce.plan import plan
from hubmerge.results import overall, read_results, verdict_of
from hubmerge.specs.recipe import read_recipe
from hubmerge.tasks.lookup import catalog

ROOT = Path(__file__).parents[2]
FOLDERS = sorted(path.parent for path in (ROOT / "recipes").glob("*/recipe.yaml"))
PROFILES = ("mini", "paper", "smoke")
RAN = [folder for folder in FOLDERS if (folder / "results.json").is_file()]


def name(folder: Path) -> str:
    return folder.name


def test_every_figure_and_table_has_a_recipe() -> None:
    assert {folder.name for folder in FOLDERS} == {
        "fft-vision", "lora-vision", "moe-vision", "early-stop", "fft-nlp", "lora-nlp",
        "model-scale", "lora-rank", "difficulty", "prune-hardest", "forgetting",
        "per-task-steps", "anneal-modes",
    }  # fmt: skip


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("folder", FOLDERS, ids=name)
def test_a_recipe_can_be_laid_out(folder: Path, profile: str) -> None:
    recipe = read_recipe(folder)
    laid = plan(recipe, profile)
    keys = [unit.key for unit in laid.units]
    assert len(keys) == len(set(keys)) > 0
    assert set(laid.setting.tasks) <= catalog().keys()
    places = {key: place for place, key in enumerate(keys)}
    assert all(
        places[needed.key] < places[unit.key]
        for unit in laid.units
        for needed in unit.needs.values()
    )
    claims = [claim.name for claim in recipe.claims]
    assert len(claims) == len(set(claims))


@pytest.mark.parametrize("folder", FOLDERS, ids=name)
def test_the_mini_and_smoke_profiles_need_no_network_and_the_paper_profile_is_pinned(
    folder: Path,
) -> None:
    recipe = read_recipe(folder)
    assert recipe.setting("mini").hub == recipe.setting("smoke").hub == "local"
    paper = recipe.setting("paper")
    bases = [paper.base, *(one.base for one in paper.variants if one.base)]
    assert paper.hub is None
    assert all(len(base.partition("@")[2]) == 40 for base in bases)


@pytest.mark.parametrize("folder", FOLDERS, ids=name)
def test_three_seeds_are_measured(folder: Path) -> None:
    recipe = read_recipe(folder)
    assert recipe.setting("mini").seeds == recipe.setting("paper").seeds == (0, 1, 2)


@pytest.mark.parametrize("folder", RAN, ids=name)
def test_what_was_found_bears_out_its_verdicts(folder: Path) -> None:
    results = read_results(folder)
    assert results.recipe == folder.name
    for claim in results.claims:
        assert claim.verdict == verdict_of(claim.values, claim.threshold, claim.noise)
    assert results.verdict == overall([claim.verdict for claim in results.claims])
    assert check(results, folder / "expected.json") == []
    for chart in results.charts:
        assert (folder / f"{chart.name}.png").is_file()
        assert (folder / f"{chart.name}.svg").is_file()


def test_the_pages_are_as_they_would_be_told() -> None:
    sys.path.insert(0, str(ROOT))
    from scripts.reproduction import pages

    stale = [path for path, text in pages().items() if path.read_text(encoding="utf-8") != text]
    assert not stale
