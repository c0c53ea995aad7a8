"""Every kind of unit is made for real, on the embedded Hub, and all of them come to rows.

The tasks are folders of a few pictures, as a user's own would be.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hubmerge.hub.environment import connect
from hubmerge.reproduce.engines.inline import Inline
from hubmerge.reproduce.perform import MAKERS, perform
from hubmerge.reproduce.rows import Row, rows_of
from hubmerge.reproduce.runner import Outcome, run
from hubmerge.reproduce.store import Store
from hubmerge.reproduce.unit import Shop
from tests.reproduce.test_plan import laid

TINY: dict[str, Any] = {
    "seeds": [0], "last": 2, "steps": [1, 2], "el2n_step": 1, "el2n_seeds": 1,
    "grids": {"ties": {"scale": [0.5], "density": [0.2]}},
    "moe": {"train_steps": 1, "batch": 4, "augment": False},
}  # fmt: skip
VARIANTS = [
    {"name": "full", "train": {"batch": 4}},
    {"name": "fewer", "train": {"batch": 4}, "drop": 0.5},
    {"name": "lora", "tune": "lora", "train": {"batch": 4}},
]
FULL = {"only": ["full"]}
MEASURES = [
    {"of": "base", **FULL},
    {"of": "experts", "only": ["full", "fewer"], "steps": [2]},
    {"of": "merges", "methods": ["ties"], "steps": [2], **FULL},
    {"of": "policies", "methods": ["average"], "policies": ["last", "uniform"], **FULL},
    {"of": "loss share", **FULL},
    {"of": "forgotten", "methods": ["ties"], "steps": [2], **FULL},
    {"of": "mixtures", "steps": [2], "only": ["lora"]},
]


def pictures(folder: Path, seed: int) -> str:
    """A task of its own: thirty pictures of noise in each of two classes, one of them darker."""
    random = np.random.default_rng(seed)
    for name, most in (("dark", 90), ("bright", 256)):
        (folder / name).mkdir(parents=True)
        for number in range(30):
            noise = random.integers(0, most, (28, 28, 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / name / f"{number}.png")
    return str(folder)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Row], Outcome]:
    """A plan of every kind of unit, and its rows."""
    work = tmp_path_factory.mktemp("work")
    before = os.environ.get("HUBMERGE_HOME")
    os.environ["HUBMERGE_HOME"] = str(work / "home")
    try:
        tasks = [pictures(work / name, seed) for seed, name in enumerate(("circles", "own tags"))]
        plan = laid(MEASURES, TINY | {"tasks": tasks}, variants=VARIANTS)
        shop = Shop("local", "recipes", work / "scratch", Path("recipes"))
        with connect("local"):
            outcome = run(plan.units, Inline(perform, shop), Store(work, "code"))
    finally:
        os.environ.pop("HUBMERGE_HOME")
        if before is not None:
            os.environ["HUBMERGE_HOME"] = before
    found = {key: record.result for key, record in outcome.records.items()}
    return rows_of(plan, found), outcome


def test_all_kinds_are_made(made: tuple[list[Row], Outcome]) -> None:
    _, outcome = made
    assert [failure.message for failure in outcome.failed] == []
    assert {unit.kind for unit in outcome.made} == MAKERS.keys()


def test_each_measure_comes_to_its_rows(made: tuple[list[Row], Outcome]) -> None:
    rows, _ = made
    assert Counter(str(row["of"]) for row in rows) == {
        "base": 2,  # tasks
        "experts": 4,  # two tasks of two variants
        "merges": 1,
        "policies": 2,
        "loss share": 40,  # two tasks, two steps, ten bins
        "forgotten": 10,
        "mixtures": 1,
    }
    assert all(0 <= row["value"] <= 1 for row in rows)


def test_shares_are_of_a_whole(made: tuple[list[Row], Outcome]) -> None:
    rows, _ = made
    shares = [row for row in rows if row["of"] == "loss share" and row["task"] == "circles"]
    for step in (1, 2):
        assert sum(r["value"] for r in shares if r["step"] == step) == pytest.approx(1)


def test_bits_that_cannot_be_had_again_go_to_a_repository_of_their_own(
    made: tuple[list[Row], Outcome], tmp_path: Path
) -> None:
    plan = laid([{"of": "experts"}], {**TINY, "tasks": [pictures(tmp_path / "one", 7)]})
    base, run, _ = plan.units
    shop = Shop("local", "recipes", tmp_path / "scratch", Path("recipes"))
    with connect("local") as hub:
        found = {"base": perform(base, {}, shop)}
        taken = f"recipes/one-{run.key}"
        hub.api.create_repo(taken)
        hub.api.create_tag(taken, tag="step1")
        assert perform(run, found, shop)["repo"] == f"{taken}-2"


def test_what_was_dropped_makes_another_expert(made: tuple[list[Row], Outcome]) -> None:
    rows, outcome = made
    runs = [record for record in outcome.records.values() if record.kind == "train"]
    assert len({record.result["repo"] for record in runs}) == len(runs)
    told = {(r["variant"], r["task"]): r["value"] for r in rows if r["of"] == "experts"}
    assert set(told) == {(v, t) for v in ("full", "fewer") for t in ("circles", "own-tags")}


def test_a_merge_says_what_it_was_reached_with(made: tuple[list[Row], Outcome]) -> None:
    [merge] = [row for row in made[0] if row["of"] == "merges"]
    assert merge["note"] == "density 0.2, scale 0.5"
    assert merge["ended"] == [2, 2]
    assert merge["value"] == pytest.approx(sum(merge["tasks"].values()) / 2)
