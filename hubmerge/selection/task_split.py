"""A task set up to be asked again and again: rows in a fixed order, a model, a head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hubmerge.evaluation import Examples, outcomes
from hubmerge.learners.classification import Classifier
from hubmerge.learners.factory import first_head, make_learner, trained_head
from hubmerge.learners.learner import without_network
from hubmerge.models.language_model import LanguageModel
from hubmerge.models.loading import Model
from hubmerge.predictions import Answers, read_answers
from hubmerge.tasks.data import Split

_ORDER_SEED = 0  # of the order of rows, which the log relies on


class Dressed:
    """An opened base whose tensors are replaced by those of one merge after another."""

    def __init__(self, model: Model, device: torch.device) -> None:
        self.model, self.device = model, device
        module: nn.Module = model.module
        module.to(device)
        self._state: Mapping[str, Tensor] = module.state_dict()
        self._own: dict[str, Tensor] = {}
        encoder = None if isinstance(model, LanguageModel) else model.encoder
        self._encoded = {p.data_ptr() for p in encoder.parameters()} if encoder else set()
        self.rewords = False  # whether the merge changes what is not the encoder, such as words

    def wear(self, merged: Mapping[str, Any]) -> None:
        """Take these values by the names of the base's files, and the base's own elsewhere."""
        inside = self.model.names.inside
        worn = {name: values for name, values in merged.items() if name in inside}
        for name in self._own.keys() - worn.keys():
            self._state[inside[name]].copy_(self._own[name])
        for name, values in worn.items():
            place = self._state[inside[name]]
            self._own.setdefault(name, place.clone())
            place.copy_(torch.from_numpy(np.asarray(values, np.float32)))
        places = {self._state[inside[name]].data_ptr() for name in worn}
        self.rewords = not places <= self._encoded


class Stage:
    """A task's split, asked in an order that is fixed for the split."""

    def __init__(self, dressed: Dressed, split: Split) -> None:
        self.dressed, self.task, self._split = dressed, split.task, split
        order = torch.Generator().manual_seed(_ORDER_SEED)
        self.order: list[int] = torch.randperm(len(split), generator=order).tolist()
        self._first = first_head(dressed.model, split.task, split.classes)
        learner = make_learner(dressed.model, split.task, self._first, augment=False)
        self._network = learner.network.to(dressed.device)
        self._learner = without_network(learner)
        self._examples = Examples(self._learner.for_evaluation, split)

    def count(self, share: float) -> int:
        """How many rows a share of them is; at least one."""
        return max(1, round(share * len(self.order)))

    def ask(self, rows: Sequence[int], folder: Path) -> str:
        """One bit a row, 1 where the model as it is dressed is right.

        `folder` is the expert's, which brings the head of a task whose head is trained.
        """
        self._take_head(folder)
        batches = self._examples.batches_of(rows, self._learner.collate)
        right = outcomes(self._learner, self._network, batches, self.dressed.device)
        return "".join("1" if one else "0" for one in right)

    def answers(self, rows: Sequence[int], folder: Path) -> Answers:
        """What the model as it is dressed says of these rows, in their order; as `ask`.

        Raises UsageError for a task without classes.
        """
        self._take_head(folder)
        batches = self._examples.batches_of(rows, self._learner.collate)
        return read_answers(self._learner, self._network, batches, self.dressed.device)

    def _take_head(self, folder: Path) -> None:
        if isinstance(self._network, Classifier):
            self._network.head = self._head(folder).to(self.dressed.device)

    def _head(self, folder: Path) -> nn.Module:
        model, task, classes = self.dressed.model, self.task, self._split.classes
        if task.spec.head == "trained":
            return trained_head(model, task, classes, folder)
        if task.spec.kind == "image" and self.dressed.rewords:
            head = first_head(model, task, classes)  # its labels are embedded by the merge itself
        else:
            head = self._first
        assert head is not None
        return head
