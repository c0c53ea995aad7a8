"""The plans of one or more recipes as one plan, in which the recipes share units."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from hubmerge.errors import UnknownName, UsageError, check_all
from hubmerge.reproduce.plan import RecipePlan, make_plan
from hubmerge.reproduce.plan_cost import DurationEstimator
from hubmerge.reproduce.unit import Unit, with_needs
from hubmerge.specs.recipe import RECIPE_YAML, Recipe, read_recipe


@dataclass(frozen=True)
class CombinedPlan:
    """The plans of some recipes at one profile."""

    plans: tuple[RecipePlan, ...]
    profile: str

    @cached_property
    def units(self) -> list[Unit]:
        """Every unit once, each after the units that it needs."""
        return with_needs(unit for plan in self.plans for unit in plan.units)

    @property
    def hub(self) -> str | None:
        """The Hub that the profile names; raises UsageError if the recipes name different ones."""
        hubs = {plan.settings.hub for plan in self.plans}
        if len(hubs) > 1:
            raise UsageError(
                "Some of these recipes store their weights on the embedded Hub and some do not.",
                "Run them one by one, or write --hub.",
            )
        return hubs.pop()

    @property
    def recipes(self) -> Path:
        """The folder of all recipes; raises UsageError for recipes in different folders."""
        folders = {plan.recipe.folder.parent for plan in self.plans}
        if len(folders) > 1:
            raise UsageError("These recipes are not in one folder.", "Run them one by one.")
        return folders.pop()

    def select_units(self, keys: Iterable[str]) -> list[Unit]:
        """The units with these keys, in plan order; raises UnknownName for an unknown key."""
        known = {unit.key: unit for unit in self.units}
        wanted = set(keys)
        for key in sorted(wanted - known.keys()):
            raise UnknownName("unit", key, known)
        return [unit for key, unit in known.items() if key in wanted]

    def duration_estimator(self) -> DurationEstimator:
        """Estimates how long the units take, from what their suites assume."""
        suites = {
            unit.key: plan.recipe.suite for plan in reversed(self.plans) for unit in plan.units
        }
        return DurationEstimator(
            suites, {plan.recipe.suite: plan.settings.estimate for plan in self.plans}
        )


def combine_plans(paths: Sequence[Path], profile: str) -> CombinedPlan:
    """Read recipes and plan them together; raises UsageError with the problems of all of them."""
    recipes: list[Recipe] = []
    paths = list(dict.fromkeys(path.parent if path.name == RECIPE_YAML else path for path in paths))
    check_all(*(lambda path=path: recipes.append(read_recipe(path)) for path in paths))
    plans: list[RecipePlan] = []
    check_all(
        *(lambda recipe=recipe: plans.append(make_plan(recipe, profile)) for recipe in recipes)
    )
    return CombinedPlan(tuple(plans), profile)
