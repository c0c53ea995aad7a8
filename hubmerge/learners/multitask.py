"""Multi-task learning: one network, trained on batches with rows of several tasks.

Shapes: B examples, T tasks, C classes of the task with the most classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from hubmerge.errors import UsageError
from hubmerge.learners.classification import Classifier, ImageLearner, TextLearner
from hubmerge.learners.embedding import EmbeddingLearner
from hubmerge.learners.learner import Batch, Example, Learner, without_network
from hubmerge.learners.ranking import LanguageLearner
from hubmerge.tasks.task import Task

# The logit of classes that a task does not have: exp of it is 0, and it is finite.
_MASKED_LOGIT = torch.finfo(torch.float32).min
_FAMILIES = {ImageLearner: "images", TextLearner: "texts", LanguageLearner: "prompts"}


class MultiTaskClassifier(nn.Module):
    """One encoder with the frozen heads of T tasks: task numbers [B] and inputs -> logits [B, C].

    The encoder runs once for all rows. Every head runs on all rows too, which costs little, so that
    no shape depends on which tasks are in the batch.
    """

    def __init__(self, encoder: nn.Module, heads: Sequence[nn.Module]) -> None:
        super().__init__()
        self.encoder, self.heads = encoder, nn.ModuleList(heads).requires_grad_(False)

    def forward(self, task: Tensor, *inputs: Tensor) -> Tensor:
        features = self.encoder(*inputs)
        logits = [head(features).float() for head in self.heads]
        width = max(each.shape[-1] for each in logits)
        padded = [pad(each, (0, width - each.shape[-1]), value=_MASKED_LOGIT) for each in logits]
        return torch.stack(padded)[task, torch.arange(len(task), device=task.device)]


@dataclass(frozen=True)
class MultiTaskLearner:
    """Several learners of one family as one; an example is (task number, example of that task).

    `loss` is the sum of the losses of all rows, plus `coefficient` x `balance_loss()` x the number
    of rows (or target tokens). `balance_loss` is a term about the last forward pass, such as load
    balancing. So training minimises and reports mean loss + coefficient x term.
    """

    network: nn.Module
    learners: tuple[Learner, ...]
    balance_loss: Callable[[], Tensor] | None = None
    coefficient: float = 0.0

    @classmethod
    def from_learners(
        cls,
        learners: Sequence[Learner],
        tasks: Sequence[Task],
        balance_loss: Callable[[], Tensor] | None = None,
        coefficient: float = 0.0,
    ) -> MultiTaskLearner:
        """Combine the learners of these tasks, all made from the same model; freezes the heads.

        Raises UsageError for tasks of different families.
        """
        _check_one_family(learners, tasks)
        network, parts = learners[0].network, tuple(map(without_network, learners))
        if isinstance(network, Classifier):
            classifiers = [cast(Classifier, learner.network) for learner in learners]
            assert all(classifier.encoder is network.encoder for classifier in classifiers)
            heads = [classifier.head for classifier in classifiers]
            network = MultiTaskClassifier(network.encoder, heads)
            parts = tuple(map(_with_task_input, parts))
        return cls(network, parts, balance_loss if coefficient else None, coefficient)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "balance_loss": None}  # workers that prepare batches do not use it

    @property
    def augments(self) -> bool:
        return any(learner.augments for learner in self.learners)

    def evaluation_of_task(self, task: int) -> Callable[[Any], Example]:
        """A function that prepares the examples of one task for evaluation."""
        return partial(self._prepare_for_evaluation, task)

    def for_training(self, example: tuple[int, Any], seed: int) -> Example:
        task, task_example = example
        return {**self.learners[task].for_training(task_example, seed), "task": task}

    def for_evaluation(self, example: tuple[int, Any]) -> Example:
        return self._prepare_for_evaluation(*example)

    def collate(self, examples: Sequence[Example]) -> Batch:
        tasks = torch.tensor([example["task"] for example in examples])
        return self.learners[0].collate(examples) | {"task": tasks}

    def count_terms(self, batch: Batch) -> int:
        return self.learners[0].count_terms(batch)

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        loss = self.learners[0].loss(network, batch)
        if self.balance_loss is None:
            return loss
        return loss + self.coefficient * self.count_terms(batch) * self.balance_loss()

    def predict(self, network: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        return self.learners[0].predict(network, batch)

    def _prepare_for_evaluation(self, task: int, example: Any) -> Example:
        return {**self.learners[task].for_evaluation(example), "task": task}


def _with_task_input(learner: Learner) -> Learner:
    """The learner of a Classifier, with the task number of each row as an additional input."""
    assert isinstance(learner, ImageLearner | TextLearner)
    return dataclasses.replace(learner, input_names=("task", *learner.input_names))


def _check_one_family(learners: Sequence[Learner], tasks: Sequence[Task]) -> None:
    if any(isinstance(learner, EmbeddingLearner) for learner in learners):
        raise UsageError(
            "A mixture of experts is not trained on tasks of kind pairs.",
            "Merge the experts instead, with `hubmerge merge` or `hubmerge select`.",
        )
    by_family = dict[str, list[str]]()
    for learner, task in zip(learners, tasks, strict=True):
        by_family.setdefault(_FAMILIES[type(learner)], []).append(task.name)
    if len(by_family) > 1:
        families = ", ".join(f"{name} in {', '.join(tasks)}" for name, tasks in by_family.items())
        raise UsageError(
            f"One model cannot learn tasks of different kinds together: {families}.",
            "Give tasks of one kind only.",
        )
