"""What a unit is made with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hubmerge.hub.client import Hub
from hubmerge.opening.opened_model import Opened
from hubmerge.opening.references import open_pinned, pin, pin_task
from hubmerge.refs import ModelRef
from hubmerge.reproduce.plan import STOPPED
from hubmerge.reproduce.unit import Result, Shop, Unit
from hubmerge.runs.machine import Machine, pick_device
from hubmerge.tasks.lookup import find_task
from hubmerge.tasks.task import Task


@dataclass(frozen=True)
class Work:
    """A unit, the results of what it needs by role, and where it is made."""

    hub: Hub
    shop: Shop
    unit: Unit
    inputs: Mapping[str, Result]

    @property
    def params(self) -> Mapping[str, Any]:
        return self.unit.params

    @property
    def machine(self) -> Machine:
        """Without positions on disk: a unit that dies is made again, and is minutes long."""
        return Machine(device=self.shop.device, state_every=0)

    @property
    def device(self) -> Any:
        return pick_device(self.shop.device)

    @property
    def experts(self) -> dict[str, Result]:
        """Task -> the run of its expert, by name; stopped runs are apart.

        A unit is known whatever the order in which its needs were said.
        """
        return {
            role: result
            for role, result in sorted(self.inputs.items())
            if self.unit.needs[role].kind == "train" and not role.startswith(STOPPED)
        }

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks of the experts, in their order."""
        return tuple(map(self.task_of, self.experts))

    def task_of(self, role: str) -> Task:
        """The task of a run that the unit needs."""
        return self.task(self.unit.needs[role].params["task"])

    def task(self, text: str) -> Task:
        """A task by what finds it, pinned."""
        return pin_task(self.hub, find_task(text))

    def open(self, run: Result, step: int) -> Opened:
        """One step of a run; -1 is its last."""
        return open_pinned(self.hub, pin(self.hub, ref(run, step)))

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder of the unit's own that is gone when it is made."""
        self.shop.folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f"{self.unit.key}-", dir=self.shop.folder) as folder:
            yield Path(folder)


def ref(run: Result, step: int) -> ModelRef:
    """The revision of one step of a run, by its commit; -1 is its last step."""
    return ModelRef(run["repo"], revision=run["commits"][str(last_of(run, step))])


def last_of(run: Result, step: int) -> int:
    """A step's number; -1 is the last of the run."""
    return max(map(int, run["commits"])) if step == -1 else step


def silent(what: str, done: int, total: int) -> None:
    """Progress that nobody watches: the runner tells of whole units."""
