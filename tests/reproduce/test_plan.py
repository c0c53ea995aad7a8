"""A recipe is laid out as units that are known by all that decides them, and shared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hubmerge.errors import UsageError
from hubmerge.reproduce.plan import EARLY, Plan, plan
from hubmerge.reproduce.unit import Unit
from hubmerge.specs import validated
from hubmerge.specs.recipe import Recipe, Setting

SETTING = {
    "hub": "local", "base": "hubmerge/tiny-clip", "tasks": ["mini-mnist", "mini-texture"],
    "seeds": [0, 1], "last": 8, "steps": [2, 8], "el2n_step": 2, "el2n_seeds": 3,
    "train": {"batch": 8, "schedule": "constant", "warmup_steps": 2},
    "tune": {"full": {"lr": 5e-4}, "lora": {"lr": 2e-3, "rank": 2}},
    "stop": {"early_stop": "plateau", "evaluate_every": 2},
    "grids": {"ties": {"scale": [0.5, 1.0], "density": [0.2]}},
    "estimate": {"seconds_per_step": 0.1, "seconds_per_merge": 1, "bytes_per_step": 1000},
}  # fmt: skip


def laid(measures: list[dict[str, Any]], setting: dict[str, Any] | None = None, **own: Any) -> Plan:
    said = {
        "title": "A title", "suite": "own", "where": "figure 1", "says": "It falls.",
        "measures": measures, "claims": [{"name": "c", "says": "C.", "a": {"of": "merges"}}], **own,
    }  # fmt: skip
    recipe = validated(Recipe, said, "recipe")
    suite = validated(Setting, SETTING | (setting or {}), "suite")
    update = {"folder": Path("recipes/own"), "suites": {"mini": suite}}
    return plan(recipe.model_copy(update=update), "mini")


def kinds(found: Plan) -> dict[str, int]:
    count: dict[str, int] = {}
    for unit in found.units:
        count[unit.kind] = count.get(unit.kind, 0) + 1
    return count


MERGES: dict[str, Any] = {"of": "merges", "methods": ["ties"]}


def test_what_is_measured_of_the_same_experts_shares_them() -> None:
    found = laid([{"of": "experts"}, MERGES, {**MERGES, "methods": ["average"]}])
    # Two tasks at two seeds; two steps at two seeds by two methods.
    assert kinds(found) == {"base": 1, "train": 4, "scores": 4, "merge": 8}


def test_what_is_needed_comes_first() -> None:
    seen: set[str] = set()
    for unit in laid([{"of": "forgotten", "methods": ["ties"]}, {"of": "loss share"}]).units:
        assert all(needed.key in seen for needed in unit.needs.values())
        seen.add(unit.key)


def test_early_stopping_adds_runs_without_a_schedule() -> None:
    found = laid([{**MERGES, "early": True}])
    assert kinds(found) == {"base": 1, "train": 8, "merge": 6}
    stopped = [u for u in found.units if u.params.get("train", {}).get("early_stop")]
    assert len(stopped) == 4
    assert all("schedule" not in unit.params["train"] for unit in stopped)
    steps = [asked.labels["step"] for asked in found.asked]
    assert steps == [2, 8, EARLY, 2, 8, EARLY]


def test_hard_examples_are_those_of_runs_of_their_own() -> None:
    variants = [{"name": "all"}, {"name": "fewer", "drop": 0.1}]
    found = laid([{"of": "experts"}], variants=variants)
    # 4 runs on all, 4 on fewer, and for each task 3 seeds of 2 steps for its difficulty.
    assert kinds(found) == {"base": 1, "train": 14, "difficulty": 2, "scores": 8}


def test_a_variant_is_trained_as_it_says() -> None:
    variants = [{"name": "own", "tune": "lora", "train": {"rank": 4, "steps": 4}, "label": 4}]
    [*_, run] = [u for u in laid([{"of": "experts"}], variants=variants).units if u.kind == "train"]
    assert run.params["train"]["rank"] == 4
    assert run.params["train"]["lr"] == 2e-3
    assert run.params["pushed"] == (1, 2, 4)
    assert run.steps == 4


def test_a_unit_is_known_by_what_decides_it() -> None:
    unit = Unit("merge", {"scale": 1.0}, "a merge")
    assert unit.key == Unit("merge", {"scale": 1.0}, "called otherwise", steps=3).key
    others = [
        Unit("merge", {"scale": 0.9}, "a merge"),
        Unit("merge", {"scale": 1.0}, "a merge", cpus=2),
        Unit("mixture", {"scale": 1.0}, "a merge"),
        Unit("merge", {"scale": 1.0}, "a merge", needs={"expert": unit}),
    ]
    assert len({unit.key, *(other.key for other in others)}) == 5


def test_a_setting_that_cannot_be_meant_is_refused_before_anything_runs() -> None:
    with pytest.raises(UsageError, match="lr"):
        laid([{"of": "experts"}], {"tune": {"full": {"lr": -1}}})


def test_a_measure_of_no_variant_is_refused() -> None:
    with pytest.raises(UsageError, match="Unknown variant 'rank 3'"):
        laid([{"of": "experts", "only": ["rank 3"]}])


def test_methods_and_parameters_that_are_none_are_refused_together() -> None:
    with pytest.raises(UsageError) as told:
        laid([{**MERGES, "methods": ["ties", "tise"]}], {"grids": {"ties": {"scael": [0.5]}}})
    assert [problem[:22] for problem in told.value.problems] == [
        "Unknown merge method '",
        "Unknown parameter of t",
    ]


def test_a_method_that_is_not_tuned_is_refused() -> None:
    with pytest.raises(UsageError, match="no values to try for dare"):
        laid([{**MERGES, "methods": ["dare"]}])


def test_a_step_that_is_not_pushed_is_refused() -> None:
    with pytest.raises(UsageError, match="step 5 of full is not pushed"):
        laid([{**MERGES, "steps": [5]}])


@pytest.mark.parametrize("place", ["/etc", "../../elsewhere"])
def test_a_base_that_lies_elsewhere_is_refused(place: str) -> None:
    with pytest.raises(UsageError, match="does not lie beside the recipe"):
        laid([MERGES], {"base": f"folder:{place}"})
