"""The units that recipes start from: bases, the runs of experts, how hard their examples are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hubmerge.errors import DataError, UsageError
from hubmerge.reproduce.folder_digest import digest_of
from hubmerge.reproduce.unit import Unit
from hubmerge.specs import TrainSpec, validated
from hubmerge.specs.recipe import Recipe, Setting, Variant
from hubmerge.tasks.lookup import catalog, find_task
from hubmerge.tasks.task import Task
from hubmerge.training.schedule import push_steps

ABSENT = "absent"  # for the digest of a task whose data are not there yet
FOLDER = "folder:"  # of a base that lies beside the recipes
Experts = Mapping[str, Unit]  # name of a task -> the run of its expert
_OURS = {"base", "task", "to", "seed", "tune", "difficulty", "drop_hardest"}
_UNSTOPPED = ("schedule", "anneal", "warmup")  # of a run whose end is known; stopping has its own


@dataclass(frozen=True)
class Known:
    """A task as a recipe knows it: what finds it, and the digest of what it is."""

    text: str
    digest: str


class Runs:
    """Draws the runs of one recipe at one setting; runs that are the same are the same unit."""

    def __init__(self, recipe: Recipe, setting: Setting) -> None:
        self._recipe, self._setting = recipe, setting
        self.tasks = _tasks(setting)

    def unit(
        self,
        kind: str,
        params: Mapping[str, Any],
        about: str,
        needs: Mapping[str, Unit],
        steps: int = 0,
    ) -> Unit:
        """A unit of this setting's size."""
        setting = self._setting
        return Unit(kind, params, about, needs, setting.cpus, setting.gpus, steps)

    def experts(self, variant: Variant, seed: int, early: bool = False) -> Experts:
        """The run of every task's expert; the early-stopped one if `early`."""
        return {task: self._run(variant, task, seed, early) for task in self.tasks}

    def difficulty(self, variant: Variant, task: str) -> Unit:
        """EL2N of a task's training examples, over runs of a variant on all data."""
        setting = self._setting
        whole = variant.model_copy(update={"drop": 0.0, "name": "difficulty"})
        runs = {
            f"seed {seed}": self._run(whole, task, seed, last=setting.el2n_step)
            for seed in range(setting.el2n_seeds)
        }
        return self.unit("difficulty", self.of_task(task), f"EL2N of {task}", runs)

    def base(self, variant: Variant) -> Unit:
        """The base that a variant starts from."""
        base = variant.base or self._setting.base
        params: dict[str, Any] = {"base": base}
        if base.startswith(FOLDER):
            params["digest"] = digest_of(self._beside(base.removeprefix(FOLDER)))
        return self.unit("base", params, f"base {base}", {})

    def _beside(self, place: str) -> Path:
        """A folder beside the recipe; raises UsageError for one elsewhere, which may be private."""
        around = self._recipe.folder.parent
        if not (around / place).resolve().is_relative_to(around.resolve()):
            raise UsageError(
                f"The base folder:{place} does not lie beside the recipe.",
                "Put it into the folder of the recipes, as it is copied to the Hub.",
            )
        return around / place

    def of_task(self, task: str) -> dict[str, str]:
        """What the parameters of a unit say of its task."""
        return {"task": self.tasks[task].text, "task_digest": self.tasks[task].digest}

    def _run(
        self, variant: Variant, task: str, seed: int, early: bool = False, last: int | None = None
    ) -> Unit:
        """The training of one expert, to another `last` step than the setting's if it is said."""
        setting = self._setting
        said = {"push_every": setting.push, "steps": setting.last, **setting.train}
        said |= {**setting.tune.get(variant.tune, {}), **variant.train}
        if early:
            said = {name: value for name, value in said.items() if name not in _UNSTOPPED}
            said |= setting.stop
        if last:
            said |= {"steps": last, "push_every": str(last)}
        if taken := sorted(_OURS & said.keys()):
            raise UsageError(
                f"{self._recipe.name}: `train` cannot say {', '.join(taken)}.",
                "A recipe says base, tasks and seeds itself, and `drop` in a variant.",
            )
        said |= {"seed": seed, "tune": variant.tune}
        checked = validated(
            TrainSpec,
            {**said, "base": "base", "task": task, "to": "recipes/expert"},
            f"{self._recipe.name}, {task}",
        )
        pushed = push_steps(checked.push_every, checked.steps)
        params: dict[str, Any] = {**self.of_task(task), "train": _plain(said), "pushed": pushed}
        needs = {"base": self.base(variant)}
        if variant.drop:
            params["drop"] = variant.drop
            needs["difficulty"] = self.difficulty(variant, task)
        ended = ", stopped early" if early else ""
        steps = sum(pushed) if checked.anneal == "independent" else checked.steps
        return self.unit(
            "train", params, f"{task}, {variant.name}, seed {seed}{ended}", needs, steps
        )


def _tasks(setting: Setting) -> dict[str, Known]:
    """The tasks of a setting by name, found as `hubmerge train --task` finds them."""
    found: dict[str, Known] = {}
    for text in setting.tasks:
        task = find_task(text)
        if task.name in found:
            raise UsageError(f"Two tasks are called {task.name}.", "Give one another name.")
        # Where a unit is made is not where it was asked for.
        is_local = text not in catalog() and "://" not in text
        place = str(Path(text).expanduser().resolve()) if is_local else text
        found[task.name] = Known(place, _digest(task))
    return found


def _digest(task: Task) -> str:
    """A task's digest; data that the user has to bring may come after the plan is looked at."""
    try:
        return task.digest
    except DataError:
        return ABSENT


def _plain(said: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is None, so that leaving it out and saying nothing are the same."""
    return {name: value for name, value in said.items() if value is not None}
