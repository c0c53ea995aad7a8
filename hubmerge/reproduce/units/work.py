"""The inputs of a unit while it is performed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hubmerge.hub.client import Hub
from hubmerge.opening.opened_model import OpenedModel
from hubmerge.opening.references import open_pinned, pin, pin_task
from hubmerge.refs import ModelRef
from hubmerge.reproduce.plan import STOPPED_PREFIX
from hubmerge.reproduce.source_units import find_recipe_task
from hubmerge.reproduce.unit import Result, Unit, WorkContext
from hubmerge.runs.machine import Machine, pick_device
from hubmerge.tasks.task import Task


@dataclass(frozen=True)
class UnitJob:
    """A unit, the results of the units that it needs by role, and where it runs."""

    hub: Hub
    context: WorkContext
    unit: Unit
    inputs: Mapping[str, Result]

    @property
    def params(self) -> Mapping[str, Any]:
        return self.unit.params

    @property
    def machine(self) -> Machine:
        """The machine settings; no training state is saved, as a lost unit simply runs again."""
        return Machine(device=self.context.device, state_every=0)

    @property
    def device(self) -> Any:
        return pick_device(self.context.device)

    @property
    def experts(self) -> dict[str, Result]:
        """Task -> the run of its expert, without early-stopped runs.

        Sorted by name, as the key of a unit does not depend on the order of its needs.
        """
        return {
            role: result
            for role, result in sorted(self.inputs.items())
            if self.unit.needs[role].kind == "train" and not role.startswith(STOPPED_PREFIX)
        }

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks of the experts, in the same order."""
        return tuple(map(self.task_of, self.experts))

    def task_of(self, role: str) -> Task:
        """The task of a run that the unit needs, by role."""
        return self.task(self.unit.needs[role].params["task"])

    def task(self, text: str) -> Task:
        """Find a task by its reference and pin it."""
        return pin_task(self.hub, find_recipe_task(text, self.context.recipes))

    def open_step(self, run: Result, step: int) -> OpenedModel:
        """Open one step of a run; -1 is its last step."""
        return open_pinned(self.hub, pin(self.hub, step_ref(run, step)))

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A temporary folder of the unit."""
        self.context.folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f"{self.unit.key}-", dir=self.context.folder) as folder:
            yield Path(folder)


def step_ref(run: Result, step: int) -> ModelRef:
    """The revision of one step of a run, by its commit; -1 is its last step."""
    return ModelRef(run["repo"], revision=run["commits"][str(step_number(run, step))])


def step_number(run: Result, step: int) -> int:
    """The number of a step; -1 is the last step of the run."""
    return max(map(int, run["commits"])) if step == -1 else step
