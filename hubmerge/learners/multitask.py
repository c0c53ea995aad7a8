"""Several tasks learnt together by one network, which sees the rows of all of them at once.

Shapes: B examples, T tasks, C classes of the task that has most.
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
from hubmerge.learners.learner import Batch, Example, Learner, without_network
from hubmerge.learners.ranking import LanguageLearner
from hubmerge.tasks.task import Task

# In the place of classes that a task has not: exp of it is 0, and yet it is a number.
_NEVER = torch.finfo(torch.float32).min
_FAMILIES = {ImageLearner: "images", TextLearner: "texts", LanguageLearner: "prompts"}


class MixedClassifier(nn.Module):
    """One encoder under the frozen heads of T tasks: tasks [B] and inputs -> logits [B, C].

    The encoder runs once for all rows; the heads, which cost next to nothing, all run on all rows,
    so that no shape hangs on who came.
    """

    def __init__(self, encoder: nn.Module, heads: Sequence[nn.Module]) -> None:
        super().__init__()
        self.encoder, self.heads = encoder, nn.ModuleList(heads).requires_grad_(False)

    def forward(self, task: Tensor, *inputs: Tensor) -> Tensor:
        features = self.encoder(*inputs)
        logits = [head(features).float() for head in self.heads]
        most = max(one.shape[-1] for one in logits)
        wide = torch.stack([pad(one, (0, most - one.shape[-1]), value=_NEVER) for one in logits])
        return wide[task, torch.arange(len(task), device=task.device)]


@dataclass(frozen=True)
class MixedLearner:
    """Learners of one family as one; an example is the number of its task and that task's example.

    `loss` is the sum over the rows of each one's own loss, whichever task it is of, and, times the
    rows (or target tokens), `coefficient` x `balance()`, a term about the last forward such as a
    load balance: what training reports and minimises is the mean loss + coefficient x term.
    """

    network: nn.Module
    learners: tuple[Learner, ...]
    balance: Callable[[], Tensor] | None = None
    coefficient: float = 0.0

    @classmethod
    def of(
        cls,
        learners: Sequence[Learner],
        tasks: Sequence[Task],
        balance: Callable[[], Tensor] | None = None,
        coefficient: float = 0.0,
    ) -> MixedLearner:
        """The learners of these tasks, made of one and the same model; heads are frozen from now.

        Raises UsageError for tasks of different families.
        """
        _check_one_family(learners, tasks)
        network, light = learners[0].network, tuple(map(without_network, learners))
        if isinstance(network, Classifier):
            each = [cast(Classifier, learner.network) for learner in learners]
            assert all(one.encoder is network.encoder for one in each)
            network = MixedClassifier(network.encoder, [one.head for one in each])
            light = tuple(map(_asking_by_task, light))
        return cls(network, light, balance if coefficient else None, coefficient)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "balance": None}  # what prepares batches elsewhere has no network

    @property
    def varies(self) -> bool:
        return any(learner.varies for learner in self.learners)

    def at(self, task: int) -> Callable[[Any], Example]:
        """How the examples of one task by itself are evaluated."""
        return partial(self._evaluated, task)

    def for_training(self, example: tuple[int, Any], seed: int) -> Example:
        task, own = example
        return {**self.learners[task].for_training(own, seed), "task": task}

    def for_evaluation(self, example: tuple[int, Any]) -> Example:
        return self._evaluated(*example)

    def collate(self, examples: Sequence[Example]) -> Batch:
        tasks = torch.tensor([example["task"] for example in examples])
        return self.learners[0].collate(examples) | {"task": tasks}

    def count(self, batch: Batch) -> int:
        return self.learners[0].count(batch)

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        loss = self.learners[0].loss(network, batch)
        if self.balance is None:
            return loss
        return loss + self.coefficient * self.count(batch) * self.balance()

    def answers(self, network: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        return self.learners[0].answers(network, batch)

    def _evaluated(self, task: int, example: Any) -> Example:
        return {**self.learners[task].for_evaluation(example), "task": task}


def _asking_by_task(learner: Learner) -> Learner:
    """The learner of a Classifier, telling its network which task each row is of."""
    assert isinstance(learner, ImageLearner | TextLearner)
    return dataclasses.replace(learner, inputs=("task", *learner.inputs))


def _check_one_family(learners: Sequence[Learner], tasks: Sequence[Task]) -> None:
    named = dict[str, list[str]]()
    for learner, task in zip(learners, tasks, strict=True):
        named.setdefault(_FAMILIES[type(learner)], []).append(task.name)
    if len(named) > 1:
        said = ", ".join(f"{family} in {', '.join(names)}" for family, names in named.items())
        raise UsageError(
            f"One model cannot learn all of these tasks: there are {said}.",
            "Leave out all but those of one family.",
        )
