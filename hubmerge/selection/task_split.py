"""A task prepared for repeated evaluation: its rows in a fixed order, a model and a head."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hubmerge.evaluation import Examples
from hubmerge.learners.classification import Classifier
from hubmerge.learners.factory import (
    class_model,
    initial_head,
    load_trained_head,
    make_learner,
)
from hubmerge.learners.learner import without_network
from hubmerge.models.class_model import HeadedBase
from hubmerge.models.embedder import Embedder
from hubmerge.models.language_model import LanguageModel
from hubmerge.models.loading import Model
from hubmerge.models.text_decoder import TextDecoder
from hubmerge.predictions import Predictions, read_predictions
from hubmerge.row_values import check_metric, measure_rows
from hubmerge.tasks.data import Split
from hubmerge.trials import RowValues
from hubmerge.weights.kept_heads import KeptHead

_ORDER_SEED = 0  # of the order of rows; trials in the log depend on it


class LoadedModel:
    """An opened base whose tensors are replaced by those of one merge after another.

    `classifier` is the base under the head of a task, if experts have heads of their own.
    `changes_outside_encoder` is true if the loaded merge changes more than the vision encoder.
    """

    def __init__(
        self, model: Model, device: torch.device, classifier: HeadedBase | None = None
    ) -> None:
        self.model, self.device, self.classifier = model, device, classifier
        module: nn.Module = model.module if classifier is None else classifier.module
        module.to(device)
        self._state: Mapping[str, Tensor] = module.state_dict()
        self._module_names = model.names.module_names if classifier is None else classifier.names
        self._base_tensors: dict[str, Tensor] = {}
        no_head = LanguageModel, TextDecoder, Embedder
        encoder = None if isinstance(model, no_head) else model.encoder
        self._encoder_pointers = {p.data_ptr() for p in encoder.parameters()} if encoder else set()
        self.changes_outside_encoder = False

    def load_tensor(self, name: str, values: Any) -> None:
        """Load a tensor of a merge, by its name in the base's files, if the model has it."""
        if name in self._module_names:
            parameter = self._state[self._module_names[name]]
            self._base_tensors.setdefault(name, parameter.clone())
            parameter.copy_(torch.from_numpy(np.asarray(values, np.float32)))

    def finish_merge(self, loaded: Collection[str]) -> None:
        """Load the base's own tensors in place of those that are not `loaded`."""
        parameters = {name: self._state[self._module_names[name]] for name in self._base_tensors}
        for name in self._base_tensors.keys() - loaded:
            parameters[name].copy_(self._base_tensors[name])
        pointers = {parameters[name].data_ptr() for name in parameters.keys() & loaded}
        self.changes_outside_encoder = not pointers <= self._encoder_pointers

    def load_head(self, head: KeptHead) -> None:
        """Load the head of an expert into the classifier."""
        assert self.classifier is not None
        for name, values in head.read().items():
            self._state[self.classifier.head_names[name]].copy_(torch.from_numpy(values))


def load_merge(models: Iterable[LoadedModel], merged: Iterable[tuple[str, Any]]) -> None:
    """Load the tensors of a merge into open models one by one, and the base's own elsewhere."""
    opened, loaded = list(dict.fromkeys(models)), set()
    for name, values in merged:
        loaded.add(name)
        for model in opened:
            model.load_tensor(name, values)
    for model in opened:
        model.finish_merge(loaded)


@dataclass(frozen=True)
class EvaluatedRows:
    """One bit per row, 1 for right, or one number per row.

    `unfinished` counts the texts generated for them that reached the limit without an end.
    """

    values: RowValues
    unfinished: int = 0


class TaskSplit:
    """A split of a task, evaluated in a row order that is fixed for the split.

    `generated` counts the texts that were generated for it, here or by workers, and `unfinished`
    those of them that reached the limit of the task. Raises UsageError for a metric function that
    fails.
    """

    def __init__(self, loaded_model: LoadedModel, split: Split) -> None:
        self.loaded_model, self.task, self._split = loaded_model, split.task, split
        check_metric(split)
        self.generated = self.unfinished = 0
        order = torch.Generator().manual_seed(_ORDER_SEED)
        self.row_order: list[int] = torch.randperm(len(split), generator=order).tolist()
        model, classifier = loaded_model.model, loaded_model.classifier
        self._first_head = (
            initial_head(model, split.task, split.classes)
            if classifier is None
            else class_model(
                model, classifier.module, split.classes, f"The expert of {split.task.name}"
            )
        )
        learner = make_learner(model, split.task, self._first_head, augment=False)
        self._network = learner.network.to(loaded_model.device)
        self._learner = without_network(learner)
        self._examples = Examples(self._learner.for_evaluation, split)

    def row_count(self, share: float) -> int:
        """Return the number of rows in a share of the split; at least one."""
        return max(1, round(share * len(self.row_order)))

    def evaluate(
        self, rows: Sequence[int], folder: Path, head: KeptHead | None = None
    ) -> EvaluatedRows:
        """Evaluate the loaded model on rows, in their order.

        `folder` is the expert's; it has the head of a task whose head is trained, unless the loaded
        model is a classifier, which gets `head`.
        """
        self._set_head(folder, head)
        device = self.loaded_model.device
        measured = measure_rows(self._learner, self._network, self._examples, rows, device)
        return EvaluatedRows(measured.as_row_values(self.task), measured.unfinished)

    def count_texts(self, evaluated: EvaluatedRows) -> None:
        """Count the texts that were generated for rows."""
        self.generated += len(evaluated.values)
        self.unfinished += evaluated.unfinished

    def predict(
        self, rows: Sequence[int], folder: Path, head: KeptHead | None = None
    ) -> Predictions:
        """Return the predictions of the loaded model for these rows, in their order.

        The other arguments are as for `evaluate`. Raises UsageError for a task without classes.
        """
        self._set_head(folder, head)
        batches = self._examples.batches_of(rows, self._learner.collate)
        return read_predictions(self._learner, self._network, batches, self.loaded_model.device)

    def _set_head(self, folder: Path, head: KeptHead | None) -> None:
        if head is not None:
            self.loaded_model.load_head(head)
        elif isinstance(self._network, Classifier):
            self._network.head = self._make_head(folder).to(self.loaded_model.device)

    def _make_head(self, folder: Path) -> nn.Module:
        model, task, classes = self.loaded_model.model, self.task, self._split.classes
        if task.spec.head == "trained":
            return load_trained_head(model, task, classes, folder)
        if task.spec.kind == "image" and self.loaded_model.changes_outside_encoder:
            head = initial_head(model, task, classes)  # the merge itself embeds the labels
        else:
            head = self._first_head
        assert head is not None
        return head
