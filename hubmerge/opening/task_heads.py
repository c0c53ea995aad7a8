"""The classification head for a model and a task."""

from __future__ import annotations

from torch import nn

from hubmerge.hub.client import Hub
from hubmerge.learners.factory import initial_head, load_trained_head
from hubmerge.models.loading import Model, load_model
from hubmerge.opening.bases import open_base
from hubmerge.opening.opened_model import OpenedModel
from hubmerge.tasks.task import Task


class TaskHeads:
    """Load heads of models; a head embedded by a base is made once for all its models."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._heads: dict[tuple[str, str], nn.Module | None] = {}

    def load(
        self, model: OpenedModel, loaded: Model, task: Task, classes: tuple[str, ...]
    ) -> nn.Module | None:
        """The trained head in the model's folder, or label embeddings; None without classes.

        Labels of texts are embedded by the base, because a fine-tuned encoder embeds them in
        another way.
        """
        spec = task.spec
        if not spec.is_classification:
            return None
        if spec.head == "trained":
            return load_trained_head(loaded, task, classes, model.folder)
        if spec.kind == "image":
            return initial_head(loaded, task, classes)
        base = open_base(self._hub, model) or model
        key = (base.digest, task.id)
        if key not in self._heads:
            self._heads[key] = initial_head(load_model(base.folder, spec.kind), task, classes)
        return self._heads[key]
