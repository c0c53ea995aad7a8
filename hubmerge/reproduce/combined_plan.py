"""What is run together: the plans of one or more recipes as one, in which they share units."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from hubmerge.errors import UnknownName, UsageError, check_all
from hubmerge.reproduce.plan import Plan, plan
from hubmerge.reproduce.plan_cost import Pace
from hubmerge.reproduce.unit import Unit, with_needs
from hubmerge.specs.recipe import NAME, Recipe, read_recipe


@dataclass(frozen=True)
class Order:
    """Recipes at one profile."""

    plans: tuple[Plan, ...]
    profile: str

    @cached_property
    def units(self) -> list[Unit]:
        """Every unit once, whatever is needed first."""
        return with_needs(unit for plan in self.plans for unit in plan.units)

    @property
    def hub(self) -> str | None:
        """The Hub that the profile asks for; raises UsageError if its recipes differ."""
        hubs = {plan.setting.hub for plan in self.plans}
        if len(hubs) > 1:
            raise UsageError(
                "Some of these recipes keep their weights on the embedded Hub and some do not.",
                "Run them one by one, or say --hub.",
            )
        return hubs.pop()

    @property
    def recipes(self) -> Path:
        """The folder of all recipes; raises UsageError for recipes that lie apart."""
        folders = {plan.recipe.folder.parent for plan in self.plans}
        if len(folders) > 1:
            raise UsageError("These recipes do not lie in one folder.", "Run them one by one.")
        return folders.pop()

    def chosen(self, keys: Iterable[str]) -> list[Unit]:
        """The units of these keys, in plan order; raises UnknownName for what is none."""
        known = {unit.key: unit for unit in self.units}
        wanted = set(keys)
        for key in sorted(wanted - known.keys()):
            raise UnknownName("unit", key, known)
        return [unit for key, unit in known.items() if key in wanted]

    def pace(self) -> Pace:
        """How long its units take, as their suites assume."""
        suites = {
            unit.key: plan.recipe.suite for plan in reversed(self.plans) for unit in plan.units
        }
        return Pace(suites, {plan.recipe.suite: plan.setting.estimate for plan in self.plans})


def order(places: Sequence[Path], profile: str) -> Order:
    """Read recipes and lay them out; raises UsageError with the problems of all of them."""
    recipes: list[Recipe] = []
    places = list(dict.fromkeys(place.parent if place.name == NAME else place for place in places))
    check_all(*(lambda place=place: recipes.append(read_recipe(place)) for place in places))
    plans: list[Plan] = []
    check_all(*(lambda one=one: plans.append(plan(one, profile)) for one in recipes))
    return Order(tuple(plans), profile)
