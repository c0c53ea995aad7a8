"""The interface of a model with a task that training and evaluation use."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

from torch import Tensor, nn

Example = Mapping[str, Any]  # one row, prepared for the network
Batch = dict[str, Tensor]


class Learner(Protocol):
    """A network, and how rows become its batches, losses and predictions.

    The parameter `network` of methods is `self.network`, possibly wrapped for several processes.
    """

    @property
    def network(self) -> nn.Module:
        """The network; its parameters that require gradients are trained."""

    @property
    def augments(self) -> bool:
        """Whether training augments rows at random, differently in each epoch."""

    def for_training(self, example: Any, seed: int) -> Example:
        """A row prepared for training; random augmentation depends on `seed` only."""

    def for_evaluation(self, example: Any) -> Example:
        """A row prepared for evaluation, without augmentation."""

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Prepared rows as one batch."""

    def count_terms(self, batch: Batch) -> int:
        """The number of terms in the summed loss of a batch: examples, or target tokens."""

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        """The summed loss of a batch."""

    def predict(self, network: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Predictions and references [B, K], padded with -1 where a row has fewer than K.

        Raises CheckpointError for logits that are not finite, since argmax would still return a
        class for them.
        """


def without_network(learner: Learner) -> Learner:
    """The learner without its network, to prepare batches: cheap to keep and to pickle."""
    return cast(Learner, dataclasses.replace(cast(Any, learner), network=None))
