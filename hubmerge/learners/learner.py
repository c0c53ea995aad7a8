"""What training and evaluation need of a model at a task, whatever the two are."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

from torch import Tensor, nn

Example = Mapping[str, Any]  # one row, as the network takes it
Batch = dict[str, Tensor]


class Learner(Protocol):
    """A network and how rows become its batches, losses and answers.

    Wherever a `network` is asked for it is `self.network`, perhaps wrapped for several processes.
    """

    @property
    def network(self) -> nn.Module:
        """What runs; those of its parameters that require gradients are trained."""

    @property
    def varies(self) -> bool:
        """Whether a row is trained on differently from epoch to epoch."""

    def for_training(self, example: Any, seed: int) -> Example:
        """A row as it is trained on; what is random in it hangs on `seed` alone."""

    def for_evaluation(self, example: Any) -> Example:
        """A row as it is evaluated, always the same."""

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Rows of either kind as one batch."""

    def count(self, batch: Batch) -> int:
        """How many terms the loss of a batch sums: examples, or target tokens."""

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        """The summed loss of a batch."""

    def answers(self, network: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Predictions and references [B, K], -1 where a row has fewer than K.

        Raises CheckpointError for answers that are no numbers: argmax would take them for a class.
        """


def without_network(learner: Learner) -> Learner:
    """The learner as far as rows and batches go: light to keep, and to send to other processes."""
    return cast(Learner, dataclasses.replace(cast(Any, learner), network=None))
