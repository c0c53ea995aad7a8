"""The units that recipes start with: bases, training runs of experts, difficulty of examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hubmerge.errors import DataError, UsageError
from hubmerge.reproduce.folder_digest import folder_digest
from hubmerge.reproduce.unit import Unit
from hubmerge.specs import TrainSpec, validate_spec
from hubmerge.specs.recipe import ProfileSettings, Recipe, Variant
from hubmerge.tasks.lookup import catalog, find_task
from hubmerge.tasks.task import Task
from hubmerge.training.schedule import push_steps

ABSENT_DIGEST = "absent"  # instead of the digest of a task whose data are not there yet
FOLDER_PREFIX = "folder:"  # of a base or a task in the folder of the recipes
Experts = Mapping[str, Unit]  # name of a task -> the run of its expert
_RESERVED_OPTIONS = {"base", "task", "to", "seed", "tune", "difficulty", "drop_hardest"}
_FIXED_LENGTH_OPTIONS = ("schedule", "anneal", "warmup")  # not for runs that are stopped early


@dataclass(frozen=True)
class RecipeTask:
    """A task of a recipe: the reference that finds it, and its digest."""

    reference: str
    digest: str


class UnitFactory:
    """Builds the first units of one recipe at one profile; equal units have equal keys."""

    def __init__(self, recipe: Recipe, setting: ProfileSettings) -> None:
        self._recipe, self._setting = recipe, setting
        self.tasks = _find_tasks(setting, recipe.folder.parent)

    def unit(
        self,
        kind: str,
        params: Mapping[str, Any],
        about: str,
        needs: Mapping[str, Unit],
        steps: int = 0,
    ) -> Unit:
        """A unit with the CPUs and GPUs of this profile."""
        setting = self._setting
        return Unit(kind, params, about, needs, setting.cpus, setting.gpus, steps)

    def experts(self, variant: Variant, seed: int, early: bool = False) -> Experts:
        """The run of every task's expert; the early-stopped one if `early`."""
        return {task: self._train_unit(variant, task, seed, early) for task in self.tasks}

    def difficulty(self, variant: Variant, task: str) -> Unit:
        """EL2N of a task's training examples, over runs of a variant on all data."""
        setting = self._setting
        on_all_data = variant.model_copy(update={"drop": 0.0, "name": "difficulty"})
        runs = {
            f"seed {seed}": self._train_unit(on_all_data, task, seed, last=setting.el2n_step)
            for seed in range(setting.el2n_seeds)
        }
        return self.unit("difficulty", self.task_params(task), f"EL2N of {task}", runs)

    def base(self, variant: Variant) -> Unit:
        """The base that a variant starts from."""
        base = variant.base or self._setting.base
        params: dict[str, Any] = {"base": base}
        if base.startswith(FOLDER_PREFIX):
            params["digest"] = folder_digest(
                self._folder_in_recipes(base.removeprefix(FOLDER_PREFIX))
            )
        return self.unit("base", params, f"base {base}", {})

    def _folder_in_recipes(self, name: str) -> Path:
        """A folder next to the recipe; raises UsageError for others, which may be private."""
        recipes = self._recipe.folder.parent
        if not (recipes / name).resolve().is_relative_to(recipes.resolve()):
            raise UsageError(
                f"The base folder:{name} is not in the folder of the recipes.",
                "Move it there; it will be copied to the Hub.",
            )
        return recipes / name

    def task_params(self, task: str) -> dict[str, str]:
        """The parameters of a unit that identify its task."""
        return {"task": self.tasks[task].reference, "task_digest": self.tasks[task].digest}

    def _train_unit(
        self, variant: Variant, task: str, seed: int, early: bool = False, last: int | None = None
    ) -> Unit:
        """The training run of one expert, up to step `last` if given, else the profile's last."""
        setting = self._setting
        options = {"push_every": setting.push, "steps": setting.last, **setting.train}
        options |= {**setting.tune.get(variant.tune, {}), **variant.train}
        if early:
            for name in _FIXED_LENGTH_OPTIONS:
                options.pop(name, None)
            options |= setting.stop
        if last:
            options |= {"steps": last, "push_every": str(last)}
        if reserved := sorted(_RESERVED_OPTIONS & options.keys()):
            raise UsageError(
                f"{self._recipe.name}: `train` cannot set {', '.join(reserved)}.",
                "A recipe has its own keys for base, tasks and seeds, and `drop` in a variant.",
            )
        options |= {"seed": seed, "tune": variant.tune}
        spec = validate_spec(
            TrainSpec,
            {**options, "base": "base", "task": task, "to": "recipes/expert"},
            f"{self._recipe.name}, {task}",
        )
        pushed = push_steps(spec.push_every, spec.steps)
        params: dict[str, Any] = {
            **self.task_params(task),
            "train": _without_none(options),
            "pushed": pushed,
        }
        needs = {"base": self.base(variant)}
        if variant.drop:
            params["drop"] = variant.drop
            needs["difficulty"] = self.difficulty(variant, task)
        about = f"{task}, {variant.name}, seed {seed}{', stopped early' if early else ''}"
        steps = sum(pushed) if spec.anneal == "independent" else spec.steps
        return self.unit("train", params, about, needs, steps)


def find_recipe_task(text: str, recipes: Path) -> Task:
    """The task of a recipe: a value of `hubmerge train --task`, or folder:PATH below `recipes`."""
    name = text.removeprefix(FOLDER_PREFIX)
    return find_task(str(recipes / name) if name != text else text)


def _find_tasks(setting: ProfileSettings, recipes: Path) -> dict[str, RecipeTask]:
    """The tasks of a profile by name, found as `hubmerge train --task` finds them."""
    tasks: dict[str, RecipeTask] = {}
    for text in setting.tasks:
        task = find_recipe_task(text, recipes)
        if task.name in tasks:
            raise UsageError(f"Two tasks are called {task.name}.", "Rename one of them.")
        # Units may run in another working folder, so local paths are made absolute.
        is_named = text in catalog() or "://" in text or text.startswith(FOLDER_PREFIX)
        reference = text if is_named else str(Path(text).expanduser().resolve())
        tasks[task.name] = RecipeTask(reference, _task_digest(task))
    return tasks


def _task_digest(task: Task) -> str:
    """A task's digest; data that the user must provide may be missing while a plan is shown."""
    try:
        return task.digest
    except DataError:
        return ABSENT_DIGEST


def _without_none(options: Mapping[str, Any]) -> dict[str, Any]:
    """Without None values, so that `null` and a missing option give the same unit."""
    return {name: value for name, value in options.items() if value is not None}
