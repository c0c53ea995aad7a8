"""A recipe at a profile -> the units to make, and the rows that their results become."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from hubmerge.errors import UnknownName, UsageError, check_all
from hubmerge.merging.registry import METHODS, parse_params
from hubmerge.merging.registry import method as find_method
from hubmerge.reproduce.source_units import Experts, Runs
from hubmerge.reproduce.unit import Unit, with_needs
from hubmerge.specs import validated
from hubmerge.specs.moe import MoeSpec
from hubmerge.specs.recipe import Label, Measure, Recipe, Setting, Variant

EARLY = "early stop"
STOPPED = "stopped "  # and the task: the role of an early-stopped run beside the whole one
Labels = Mapping[str, Label]


@dataclass(frozen=True)
class Asked:
    """One unit whose result becomes rows with these labels."""

    labels: Labels
    unit: Unit


@dataclass(frozen=True)
class Plan:
    """All that a recipe asks for at a profile."""

    recipe: Recipe
    profile: str
    setting: Setting
    asked: tuple[Asked, ...]

    @property
    def variants(self) -> tuple[Variant, ...]:
        """The ways of training that are compared."""
        return self.setting.variants or self.recipe.variants

    @cached_property
    def units(self) -> list[Unit]:
        """Every unit once, whatever is needed first."""
        return with_needs(one.unit for one in self.asked)


def plan(recipe: Recipe, profile: str) -> Plan:
    """Lay out a recipe; raises UsageError for a setting that cannot be meant."""
    setting = recipe.setting(profile)
    variants = setting.variants or recipe.variants
    _check_names(recipe, setting, variants)
    draft = Draft(recipe, setting)
    asked = [
        one
        for variant in variants
        for measure in recipe.measures
        if not measure.only or variant.name in measure.only
        for seed in setting.seeds
        for one in draft.asked(variant, measure, seed)
    ]
    return Plan(recipe, profile, setting, tuple(asked))


def _check_names(recipe: Recipe, setting: Setting, variants: Sequence[Variant]) -> None:
    """Variants that are not there, methods and parameters that are none, all told at once."""
    known = {variant.name for variant in variants}
    named = {name for measure in recipe.measures for name in measure.only}
    checks: list[Callable[[], object]] = [
        partial(find_method, name) for measure in recipe.measures for name in measure.methods
    ]
    checks += [partial(_check_grid, *item) for item in setting.grids.items()]
    merged = {name for m in recipe.measures if m.of == "merges" for name in m.methods}
    untried = merged & METHODS.keys() - setting.grids.keys()
    checks += [partial(_refuse_grid, name) for name in sorted(untried)]
    for name in sorted(named - known):
        checks.append(partial(_refuse_variant, name, known))
    check_all(*checks)


def _check_grid(method: str, grid: Mapping[str, Sequence[float]]) -> None:
    parse_params(find_method(method), {name: values[0] for name, values in grid.items()})


def _refuse_grid(method: str) -> None:
    """A method with a scale is not tuned at its default."""
    if "scale" in find_method(method).params.model_fields:
        raise UsageError(f"`grids` has no values to try for {method}.", "Give it some `scale`.")


def _refuse_variant(name: str, known: Iterable[str]) -> None:
    raise UnknownName("variant", name, known)


class Draft:
    """Draws the units of one recipe at one setting; units that are the same are the same."""

    def __init__(self, recipe: Recipe, setting: Setting) -> None:
        self._recipe, self._setting = recipe, setting
        self._runs = Runs(recipe, setting)

    def asked(self, variant: Variant, measure: Measure, seed: int) -> Iterator[Asked]:
        """What one measure asks of one variant at one seed."""
        named: dict[str, Label] = {"variant": variant.name, "seed": seed}
        if variant.label is not None:
            named["label"] = variant.label
        if variant.part:
            named["part"] = variant.part
        drawn = {
            "base": self._base_scores,
            "experts": self._experts_scores,
            "merges": self._merges,
            "mixtures": self._mixtures,
            "policies": self._policies,
            "loss share": self._loss_shares,
            "forgotten": self._forgotten,
        }[measure.of]
        for labels, unit in drawn(variant, measure, seed):
            yield Asked({**named, **labels}, unit)

    def _base_scores(self, variant: Variant, _: Measure, seed: int) -> Iterator[tuple[Any, Unit]]:
        if seed == self._setting.seeds[0]:  # a base has no seed
            tasks = self._runs.tasks
            said = {"tasks": {name: known.text for name, known in tasks.items()}}
            yield (
                {"of": "base"},
                self._runs.unit("base scores", said, "base", {"base": self._runs.base(variant)}),
            )

    def _experts_scores(
        self, variant: Variant, measure: Measure, seed: int
    ) -> Iterator[tuple[Any, Unit]]:
        for early in (False, True) if measure.early else (False,):
            for task, run in self._runs.experts(variant, seed, early).items():
                steps = [-1] if early else self._steps(measure)
                about = f"scores of {run.about}"
                params = {"steps": steps, **self._runs.of_task(task)}
                unit = self._runs.unit("scores", params, about, {"expert": run})
                yield {"of": "experts", "task": task}, unit

    def _merges(self, variant: Variant, measure: Measure, seed: int) -> Iterator[tuple[Any, Unit]]:
        for step in self._moments(measure):
            experts = self._taken(variant, seed, step)
            for method in measure.methods:
                about = f"{method} of {variant.name}, seed {seed}, {_at(step)}"
                yield (
                    {"of": "merges", "method": method, "step": step},
                    self._merge(experts, method, step, about),
                )

    def _mixtures(
        self, variant: Variant, measure: Measure, seed: int
    ) -> Iterator[tuple[Any, Unit]]:
        said = {**self._setting.moe, "seed": seed}
        if said.get("train_steps") == 0:
            said = {name: said[name] for name in ("train_steps", "top_k", "seed") if name in said}
        spec = validated(MoeSpec, said, f"{self._recipe.name}, moe")
        params = {"moe": spec.model_dump(mode="json", exclude_unset=True)}
        for step in self._moments(measure):
            experts = self._taken(variant, seed, step)
            about = f"mixture of {variant.name}, seed {seed}, {_at(step)}"
            said = {**params, "step": _place(step)}
            unit = self._runs.unit("mixture", said, about, experts, spec.train_steps)
            yield {"of": "mixtures", "step": step}, unit

    def _policies(
        self, variant: Variant, measure: Measure, seed: int
    ) -> Iterator[tuple[Any, Unit]]:
        runs = self._runs.experts(variant, seed)
        stopped = {
            f"{STOPPED}{t}": run for t, run in self._runs.experts(variant, seed, True).items()
        }
        for method in measure.methods:
            params = {"method": method, "policies": measure.policies, "steps": self._steps(measure)}
            about = f"policies for {method} of {variant.name}, seed {seed}"
            yield (
                {"of": "policies", "method": method},
                self._runs.unit("policies", params, about, {**runs, **stopped}),
            )

    def _loss_shares(
        self, variant: Variant, measure: Measure, seed: int
    ) -> Iterator[tuple[Any, Unit]]:
        for task, run in self._runs.experts(variant, seed).items():
            about = f"loss shares of {run.about}"
            params = {"steps": self._steps(measure), **self._runs.of_task(task)}
            needs = {"expert": run, "difficulty": self._runs.difficulty(variant, task)}
            unit = self._runs.unit("loss shares", params, about, needs)
            yield {"of": "loss share", "task": task}, unit

    def _forgotten(
        self, variant: Variant, measure: Measure, seed: int
    ) -> Iterator[tuple[Any, Unit]]:
        hard = {f"difficulty {t}": self._runs.difficulty(variant, t) for t in self._runs.tasks}
        for step in self._moments(measure):
            experts = self._taken(variant, seed, step)
            for method in measure.methods:
                about = f"forgotten by {method} of {variant.name}, seed {seed}, {_at(step)}"
                merge = self._merge(experts, method, step, about.removeprefix("forgotten by "))
                params = {"step": _place(step)}
                needs = {"merge": merge, **experts, **hard}
                unit = self._runs.unit("forgotten", params, about, needs)
                yield {"of": "forgotten", "method": method, "step": step}, unit

    def _taken(self, variant: Variant, seed: int, step: int | str) -> Experts:
        """The runs to take a step of; raises UsageError if it is none that they push."""
        experts = self._runs.experts(variant, seed, step == EARLY)
        pushed = next(iter(experts.values())).params["pushed"]
        if step != EARLY and step not in pushed:
            raise UsageError(
                f"{self._recipe.name}: step {step} of {variant.name} is not pushed.",
                f"`push` gives {', '.join(map(str, pushed))}.",
            )
        return experts

    def _merge(self, experts: Experts, method: str, step: int | str, about: str) -> Unit:
        grid = self._setting.grids.get(method, {})
        params = {"method": method, "step": _place(step), "grid": grid}
        return self._runs.unit("merge", params, about, experts)

    def _steps(self, measure: Measure) -> list[int]:
        return list(measure.steps or self._setting.steps)

    def _moments(self, measure: Measure) -> list[int | str]:
        return [*self._steps(measure), *([EARLY] if measure.early else [])]


def _place(step: int | str) -> int:
    """A step as units have it: -1 is the last that a run has."""
    return -1 if step == EARLY else int(step)


def _at(step: int | str) -> str:
    return EARLY if step == EARLY else f"step {step}"
