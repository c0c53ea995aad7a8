"""The plan of a recipe: its units, their keys, and how units are shared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hubmerge.errors import UsageError
from hubmerge.reproduce.plan import EARLY_STOP, RecipePlan, make_plan
from hubmerge.reproduce.unit import Unit
from hubmerge.specs import validate_spec
from hubmerge.specs.recipe import ProfileSettings, Recipe

SETTING = {
    "hub": "local", "base": "hubmerge/tiny-clip", "tasks": ["mini-mnist", "mini-texture"],
    "seeds": [0, 1], "last": 8, "steps": [2, 8], "el2n_step": 2, "el2n_seeds": 3,
    "train": {"batch": 8, "schedule": "constant", "warmup_steps": 2},
    "tune": {"full": {"lr": 5e-4}, "lora": {"lr": 2e-3, "rank": 2}},
    "stop": {"early_stop": "plateau", "evaluate_every": 2},
    "grids": {"ties": {"scale": [0.5, 1.0], "density": [0.2]}},
    "estimate": {"seconds_per_step": 0.1, "seconds_per_merge": 1, "bytes_per_step": 1000},
}  # fmt: skip


def lay_out(
    measures: list[dict[str, Any]], setting: dict[str, Any] | None = None, **own: Any
) -> RecipePlan:
    fields = {
        "title": "A title", "suite": "own", "where": "figure 1", "statement": "It falls.",
        "claims": [{"name": "c", "statement": "C.", "a": {"of": "merges"}}],
        "measures": measures, **own,
    }  # fmt: skip
    recipe = validate_spec(Recipe, fields, "recipe")
    suite = validate_spec(ProfileSettings, SETTING | (setting or {}), "suite")
    update = {"folder": Path("recipes/own"), "suites": {"mini": suite}}
    return make_plan(recipe.model_copy(update=update), "mini")


def kinds(plan: RecipePlan) -> dict[str, int]:
    count: dict[str, int] = {}
    for unit in plan.units:
        count[unit.kind] = count.get(unit.kind, 0) + 1
    return count


MERGES: dict[str, Any] = {"of": "merges", "methods": ["ties"]}


def test_measures_of_the_same_experts_share_the_training_runs() -> None:
    plan = lay_out([{"of": "experts"}, MERGES, {**MERGES, "methods": ["average"]}])
    # Two tasks at two seeds; two steps at two seeds by two methods.
    assert kinds(plan) == {"base": 1, "train": 4, "scores": 4, "merge": 8}


def test_needed_units_come_first() -> None:
    seen: set[str] = set()
    for unit in lay_out([{"of": "forgotten", "methods": ["ties"]}, {"of": "loss share"}]).units:
        assert all(needed.key in seen for needed in unit.needs.values())
        seen.add(unit.key)


def test_early_stopping_adds_runs_without_a_schedule() -> None:
    plan = lay_out([{**MERGES, "early": True}])
    assert kinds(plan) == {"base": 1, "train": 8, "merge": 6}
    stopped = [u for u in plan.units if u.params.get("train", {}).get("early_stop")]
    assert len(stopped) == 4
    assert all("schedule" not in unit.params["train"] for unit in stopped)
    steps = [asked.labels["step"] for asked in plan.requests]
    assert steps == [2, 8, EARLY_STOP, 2, 8, EARLY_STOP]


def test_difficulty_is_measured_with_separate_runs() -> None:
    variants = [{"name": "all"}, {"name": "fewer", "drop": 0.1}]
    plan = lay_out([{"of": "experts"}], variants=variants)
    # 4 runs on all, 4 on fewer, and for each task 3 seeds of 2 steps for its difficulty.
    assert kinds(plan) == {"base": 1, "train": 14, "difficulty": 2, "scores": 8}


def test_a_variant_overrides_the_training_options() -> None:
    variants = [{"name": "own", "tune": "lora", "train": {"rank": 4, "steps": 4}, "label": 4}]
    [*_, run] = [
        u for u in lay_out([{"of": "experts"}], variants=variants).units if u.kind == "train"
    ]
    assert run.params["train"]["rank"] == 4
    assert run.params["train"]["lr"] == 2e-3
    assert run.params["pushed"] == (1, 2, 4)
    assert run.steps == 4


def test_the_key_of_a_unit_depends_on_what_decides_its_result() -> None:
    unit = Unit("merge", {"scale": 1.0}, "a merge")
    assert unit.key == Unit("merge", {"scale": 1.0}, "called otherwise", steps=3).key
    others = [
        Unit("merge", {"scale": 0.9}, "a merge"),
        Unit("merge", {"scale": 1.0}, "a merge", cpus=2),
        Unit("mixture", {"scale": 1.0}, "a merge"),
        Unit("merge", {"scale": 1.0}, "a merge", needs={"expert": unit}),
    ]
    assert len({unit.key, *(other.key for other in others)}) == 5


def test_invalid_settings_are_refused_before_anything_runs() -> None:
    with pytest.raises(UsageError, match="lr"):
        lay_out([{"of": "experts"}], {"tune": {"full": {"lr": -1}}})


def test_a_measure_of_an_unknown_variant_is_refused() -> None:
    with pytest.raises(UsageError, match="Unknown variant 'rank 3'"):
        lay_out([{"of": "experts", "only": ["rank 3"]}])


def test_unknown_methods_and_parameters_are_reported_together() -> None:
    with pytest.raises(UsageError) as raised:
        lay_out([{**MERGES, "methods": ["ties", "tise"]}], {"grids": {"ties": {"scael": [0.5]}}})
    assert [problem[:22] for problem in raised.value.problems] == [
        "Unknown merge method '",
        "Unknown parameter of t",
    ]


def test_a_method_without_a_grid_is_refused() -> None:
    with pytest.raises(UsageError, match="no values to try for dare"):
        lay_out([{**MERGES, "methods": ["dare"]}])


def test_a_step_that_is_not_pushed_is_refused() -> None:
    with pytest.raises(UsageError, match="step 5 of full is not pushed"):
        lay_out([{**MERGES, "steps": [5]}])


@pytest.mark.parametrize("location", ["/etc", "../../elsewhere"])
def test_a_base_outside_of_the_recipes_is_refused(location: str) -> None:
    with pytest.raises(UsageError, match="is not in the folder of the recipes"):
        lay_out([MERGES], {"base": f"folder:{location}"})
