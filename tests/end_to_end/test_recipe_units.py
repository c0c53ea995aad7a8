"""Run every kind of unit on the embedded Hub, and turn the results into rows.

The tasks are folders of a few pictures, as a user may have.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from hubmerge.hub.environment import connect
from hubmerge.reproduce.engines.inline import InlineEngine
from hubmerge.reproduce.perform import MAKERS, perform
from hubmerge.reproduce.rows import Row, collect_rows
from hubmerge.reproduce.runner import RunOutcome, run
from hubmerge.reproduce.store import ResultStore
from hubmerge.reproduce.unit import WorkContext
from tests.end_to_end.pictures import write_pictures
from tests.reproduce.test_plan import lay_out

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


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Row], RunOutcome]:
    """The rows and the outcome of a plan with every kind of unit."""
    work = tmp_path_factory.mktemp("work")
    before = os.environ.get("HUBMERGE_HOME")
    os.environ["HUBMERGE_HOME"] = str(work / "home")
    try:
        tasks = [
            write_pictures(work / name, seed) for seed, name in enumerate(("circles", "own tags"))
        ]
        plan = lay_out(MEASURES, TINY | {"tasks": tasks}, variants=VARIANTS)
        context = WorkContext("local", "recipes", work / "scratch", Path("recipes"))
        with connect("local"):
            outcome = run(plan.units, InlineEngine(perform, context), ResultStore(work, "code"))
    finally:
        os.environ.pop("HUBMERGE_HOME")
        if before is not None:
            os.environ["HUBMERGE_HOME"] = before
    results = {key: record.result for key, record in outcome.records.items()}
    return collect_rows(plan, results), outcome


def test_every_kind_of_unit_succeeds(finished: tuple[list[Row], RunOutcome]) -> None:
    _, outcome = finished
    assert [failure.message for failure in outcome.failed] == []
    assert {unit.kind for unit in outcome.completed} == MAKERS.keys()


def test_each_measure_has_its_rows(finished: tuple[list[Row], RunOutcome]) -> None:
    rows, _ = finished
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


def test_loss_shares_add_up_to_one(finished: tuple[list[Row], RunOutcome]) -> None:
    rows, _ = finished
    shares = [row for row in rows if row["of"] == "loss share" and row["task"] == "circles"]
    for step in (1, 2):
        assert sum(r["value"] for r in shares if r["step"] == step) == pytest.approx(1)


def test_a_taken_repository_name_gets_a_suffix(
    finished: tuple[list[Row], RunOutcome], tmp_path: Path
) -> None:
    plan = lay_out([{"of": "experts"}], {**TINY, "tasks": [write_pictures(tmp_path / "one", 7)]})
    base, run, _ = plan.units
    context = WorkContext("local", "recipes", tmp_path / "scratch", Path("recipes"))
    with connect("local") as hub:
        results = {"base": perform(base, {}, context)}
        taken = f"recipes/one-{run.key}"
        hub.api.create_repo(taken)
        hub.api.create_tag(taken, tag="step1")
        assert perform(run, results, context)["repo"] == f"{taken}-2"


def test_training_on_fewer_rows_is_another_expert(finished: tuple[list[Row], RunOutcome]) -> None:
    rows, outcome = finished
    runs = [record for record in outcome.records.values() if record.kind == "train"]
    assert len({record.result["repo"] for record in runs}) == len(runs)
    pairs = {(row["variant"], row["task"]) for row in rows if row["of"] == "experts"}
    assert pairs == {(v, t) for v in ("full", "fewer") for t in ("circles", "own-tags")}


def test_a_merge_records_its_parameters_and_steps(finished: tuple[list[Row], RunOutcome]) -> None:
    [merge] = [row for row in finished[0] if row["of"] == "merges"]
    assert merge["note"] == "density 0.2, scale 0.5"
    assert merge["ended"] == [2, 2]
    assert merge["value"] == pytest.approx(sum(merge["tasks"].values()) / 2)
