"""The head under which a model of any kind is asked for a task's classes."""

from __future__ import annotations

from torch import nn

from hubmerge.hub.client import Hub
from hubmerge.learners.factory import first_head, trained_head
from hubmerge.models.loading import Model, open_model
from hubmerge.opening.bases import base_of
from hubmerge.opening.opened_model import Opened
from hubmerge.tasks.task import Task


class Heads:
    """Heads of models, those of a base made once for all models upon it."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._made: dict[tuple[str, str], nn.Module | None] = {}

    def of(
        self, model: Opened, opened: Model, task: Task, classes: tuple[str, ...]
    ) -> nn.Module | None:
        """The trained head from the model's folder, or labels; None where the task has no classes.

        A text encoder that was trained embeds labels anew, so theirs are embedded by its base.
        """
        spec = task.spec
        if not spec.classifies:
            return None
        if spec.head == "trained":
            return trained_head(opened, task, classes, model.folder)
        if spec.kind == "image":
            return first_head(opened, task, classes)
        base = base_of(self._hub, model) or model
        key = (base.digest, task.id)
        if key not in self._made:
            self._made[key] = first_head(open_model(base.folder, spec.kind), task, classes)
        return self._made[key]
