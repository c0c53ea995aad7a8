"""A recipe at a profile -> the units to run, and the labels of the rows that they give."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from hubmerge.errors import UnknownName, UsageError, check_all
from hubmerge.merging.registry import METHODS, parse_params
from hubmerge.merging.registry import method as find_method
from hubmerge.reproduce.source_units import Experts, UnitFactory
from hubmerge.reproduce.unit import Unit, with_needs
from hubmerge.specs import validate_spec
from hubmerge.specs.moe import MoeSpec
from hubmerge.specs.recipe import Label, Measure, ProfileSettings, Recipe, Variant

EARLY_STOP = "early stop"
STOPPED_PREFIX = "stopped "  # with the task's name the role of an early-stopped run
Labels = Mapping[str, Label]


@dataclass(frozen=True)
class UnitRequest:
    """A unit whose result gives rows with these labels."""

    labels: Labels
    unit: Unit


@dataclass(frozen=True)
class RecipePlan:
    """Everything that a recipe measures at a profile."""

    recipe: Recipe
    profile: str
    settings: ProfileSettings
    requests: tuple[UnitRequest, ...]

    @property
    def variants(self) -> tuple[Variant, ...]:
        """The ways of training that are compared."""
        return self.settings.variants or self.recipe.variants

    @cached_property
    def units(self) -> list[Unit]:
        """Every unit once, each after the units that it needs."""
        return with_needs(request.unit for request in self.requests)


def make_plan(recipe: Recipe, profile: str) -> RecipePlan:
    """Plan a recipe; raises UsageError for settings that contradict each other."""
    setting = recipe.settings_for(profile)
    variants = setting.variants or recipe.variants
    _check_names(recipe, setting, variants)
    builder = PlanBuilder(recipe, setting)
    requests = [
        request
        for variant in variants
        for measure in recipe.measures
        if not measure.only or variant.name in measure.only
        for seed in setting.seeds
        for request in builder.requests(variant, measure, seed)
    ]
    return RecipePlan(recipe, profile, setting, tuple(requests))


def _check_names(recipe: Recipe, setting: ProfileSettings, variants: Sequence[Variant]) -> None:
    """Report unknown variants, methods and parameters, all at once."""
    known = {variant.name for variant in variants}
    named = {name for measure in recipe.measures for name in measure.only}
    checks: list[Callable[[], object]] = [
        partial(find_method, name) for measure in recipe.measures for name in measure.methods
    ]
    checks += [partial(_check_grid, *item) for item in setting.grids.items()]
    merged = {name for m in recipe.measures if m.of == "merges" for name in m.methods}
    without_grid = merged & METHODS.keys() - setting.grids.keys()
    checks += [partial(_check_has_grid, name) for name in sorted(without_grid)]
    for name in sorted(named - known):
        checks.append(partial(_raise_unknown_variant, name, known))
    check_all(*checks)


def _check_grid(method: str, grid: Mapping[str, Sequence[float]]) -> None:
    parse_params(find_method(method), {name: values[0] for name, values in grid.items()})


def _check_has_grid(method: str) -> None:
    """A method with a scale must be tuned: its default suits no setting in particular."""
    if "scale" in find_method(method).params.model_fields:
        raise UsageError(
            f"`grids` has no values to try for {method}.", "Write some values of `scale`."
        )


def _raise_unknown_variant(name: str, known: Iterable[str]) -> None:
    raise UnknownName("variant", name, known)


class PlanBuilder:
    """Builds the units of one recipe at one profile; equal units have equal keys."""

    def __init__(self, recipe: Recipe, setting: ProfileSettings) -> None:
        self._recipe, self._setting = recipe, setting
        self._factory = UnitFactory(recipe, setting)

    def requests(self, variant: Variant, measure: Measure, seed: int) -> Iterator[UnitRequest]:
        """The requests of one measure for one variant at one seed."""
        common: dict[str, Label] = {"variant": variant.name, "seed": seed}
        if variant.label is not None:
            common["label"] = variant.label
        if variant.part:
            common["part"] = variant.part
        build = {
            "base": self._base_scores,
            "experts": self._expert_scores,
            "merges": self._merges,
            "mixtures": self._moes,
            "policies": self._policies,
            "loss share": self._loss_shares,
            "forgotten": self._forgotten,
        }[measure.of]
        for labels, unit in build(variant, measure, seed):
            yield UnitRequest({**common, **labels}, unit)

    def _base_scores(self, variant: Variant, _: Measure, seed: int) -> Iterator[tuple[Any, Unit]]:
        if seed == self._setting.seeds[0]:  # a base has no seed
            tasks = self._factory.tasks
            params = {"tasks": {name: task.reference for name, task in tasks.items()}}
            needs = {"base": self._factory.base(variant)}
            yield {"of": "base"}, self._factory.unit("base scores", params, "base", needs)

    def _expert_scores(
        self, variant: Variant, measure: Measure, seed: int
    ) -> Iterator[tuple[Any, Unit]]:
        for early in (False, True) if measure.early else (False,):
            for task, run in self._factory.experts(variant, seed, early).items():
                steps = [-1] if early else self._steps(measure)
                about = f"scores of {run.about}"
                params = {"steps": steps, **self._factory.task_params(task)}
                unit = self._factory.unit("scores", params, about, {"expert": run})
                yield {"of": "experts", "task": task}, unit

    def _merges(self, variant: Variant, measure: Measure, seed: int) -> Iterator[tuple[Any, Unit]]:
        for step in self._steps_and_early_stop(measure):
            experts = self._experts_at(variant, seed, step)
            for method in measure.methods:
                about = f"{method} of {variant.name}, seed {seed}, {_step_label(step)}"
                yield (
                    {"of": "merges", "method": method, "step": step},
                    self._merge_unit(experts, method, step, about),
                )

    def _moes(self, variant: Variant, measure: Measure, seed: int) -> Iterator[tuple[Any, Unit]]:
        options = {**self._setting.moe, "seed": seed}
        if options.get("train_steps") == 0:
            kept = ("train_steps", "top_k", "seed")
            options = {name: options[name] for name in kept if name in options}
        spec = validate_spec(MoeSpec, options, f"{self._recipe.name}, moe")
        moe_params = {"moe": spec.model_dump(mode="json", exclude_unset=True)}
        for step in self._steps_and_early_stop(measure):
            experts = self._experts_at(variant, seed, step)
            about = f"mixture of {variant.name}, seed {seed}, {_step_label(step)}"
            params = {**moe_params, "step": _step_number(step)}
            unit = self._factory.unit("mixture", params, about, experts, spec.train_steps)
            yield {"of": "mixtures", "step": step}, unit

    def _policies(
        self, variant: Variant, measure: Measure, seed: int
    ) -> Iterator[tuple[Any, Unit]]:
        runs = self._factory.experts(variant, seed)
        early = self._factory.experts(variant, seed, True) if self._setting.stop else {}
        stopped = {f"{STOPPED_PREFIX}{task}": run for task, run in early.items()}
        for method in measure.methods:
            params = {"method": method, "policies": measure.policies, "steps": self._steps(measure)}
            about = f"policies for {method} of {variant.name}, seed {seed}"
            yield (
                {"of": "policies", "method": method},
                self._factory.unit("policies", params, about, {**runs, **stopped}),
            )

    def _loss_shares(
        self, variant: Variant, measure: Measure, seed: int
    ) -> Iterator[tuple[Any, Unit]]:
        for task, run in self._factory.experts(variant, seed).items():
            about = f"loss shares of {run.about}"
            params = {"steps": self._steps(measure), **self._factory.task_params(task)}
            needs = {"expert": run, "difficulty": self._factory.difficulty(variant, task)}
            unit = self._factory.unit("loss shares", params, about, needs)
            yield {"of": "loss share", "task": task}, unit

    def _forgotten(
        self, variant: Variant, measure: Measure, seed: int
    ) -> Iterator[tuple[Any, Unit]]:
        difficulties = {
            f"difficulty {task}": self._factory.difficulty(variant, task)
            for task in self._factory.tasks
        }
        for step in self._steps_and_early_stop(measure):
            experts = self._experts_at(variant, seed, step)
            for method in measure.methods:
                about = f"forgotten by {method} of {variant.name}, seed {seed}, {_step_label(step)}"
                merge = self._merge_unit(experts, method, step, about.removeprefix("forgotten by "))
                params = {"step": _step_number(step)}
                needs = {"merge": merge, **experts, **difficulties}
                unit = self._factory.unit("forgotten", params, about, needs)
                yield {"of": "forgotten", "method": method, "step": step}, unit

    def _experts_at(self, variant: Variant, seed: int, step: int | str) -> Experts:
        """The runs of the experts; raises UsageError if they do not push this step."""
        experts = self._factory.experts(variant, seed, step == EARLY_STOP)
        pushed = next(iter(experts.values())).params["pushed"]
        if step != EARLY_STOP and step not in pushed:
            raise UsageError(
                f"{self._recipe.name}: step {step} of {variant.name} is not pushed.",
                f"`push` gives {', '.join(map(str, pushed))}.",
            )
        return experts

    def _merge_unit(self, experts: Experts, method: str, step: int | str, about: str) -> Unit:
        grid = self._setting.grids.get(method, {})
        params = {"method": method, "step": _step_number(step), "grid": grid}
        return self._factory.unit("merge", params, about, experts)

    def _steps(self, measure: Measure) -> list[int]:
        return list(measure.steps or self._setting.steps)

    def _steps_and_early_stop(self, measure: Measure) -> list[int | str]:
        return [*self._steps(measure), *([EARLY_STOP] if measure.early else [])]


def _step_number(step: int | str) -> int:
    """A step as the parameters of units write it: -1 is the last step of a run."""
    return -1 if step == EARLY_STOP else int(step)


def _step_label(step: int | str) -> str:
    return EARLY_STOP if step == EARLY_STOP else f"step {step}"
