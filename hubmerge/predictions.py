"""Predict every row of a split, and measure how far each prediction is from the label.

EL2N is the score of hard examples (arXiv 2107.07075, section 3; arXiv 2506.14126, section 2.4).
Shapes: N rows, B rows of a batch, C classes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from hubmerge.errors import UsageError
from hubmerge.learners.classification import ClassificationLearner, check_finite
from hubmerge.learners.learner import Batch, Learner

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Predictions:
    """Label, prediction and distance from the label of each row; all [N].

    `el2n` is ||softmax(logits) - onehot(label)||_2, in [0, sqrt(2)]; `loss` the cross-entropy in
    nats; `margin` the label's logit minus the best other one, above 0 for a correct prediction.
    """

    label: Ints
    predicted: Ints
    el2n: Floats
    loss: Floats
    margin: Floats

    def __len__(self) -> int:
        return len(self.label)

    @property
    def correct(self) -> Bools:
        """[N]: whether the prediction is the label."""
        return np.equal(self.predicted, self.label)

    @property
    def accuracy(self) -> float:
        """The share of correct rows, in [0, 1]."""
        return float(self.correct.mean())


@torch.inference_mode()
def read_predictions(
    learner: Learner, network: nn.Module, batches: Iterable[Batch], device: torch.device
) -> Predictions:
    """The predictions for all rows of the batches, in their order, in evaluation mode.

    `network` is the learner's network, given apart because a learner may be stored without it.
    Raises UsageError for a task without classes, CheckpointError for logits that are not finite.
    """
    if not isinstance(learner, ClassificationLearner):
        raise UsageError(
            "The difficulty of an example needs a task of images or texts with classes.",
            "Name a task of kind image or text; `hubmerge tasks` lists them.",
        )
    network.eval()
    parts: list[dict[str, Tensor]] = []
    for batch in batches:
        on_device = {name: tensor.to(device) for name, tensor in batch.items()}
        logits = learner.scores(network, on_device)
        check_finite(logits)
        # In float64 a sum over 4000 rows is the same to the last digit that is printed.
        parts.append(_score_batch(logits.cpu().double(), batch["label"]))
    columns: dict[str, Any] = {
        field.name: torch.cat([part[field.name] for part in parts]).numpy()
        for field in fields(Predictions)
    }
    return Predictions(**columns)


def _score_batch(logits: Tensor, label: Tensor) -> dict[str, Tensor]:
    """One batch: logits [B, C] and labels [B] -> every field of Predictions, each [B]."""
    target = one_hot(label, logits.shape[-1])
    others = logits.masked_fill(target.bool(), -torch.inf)
    return {
        "label": label,
        "predicted": logits.argmax(dim=-1),
        "el2n": (logits.softmax(dim=-1) - target).norm(dim=-1),
        "loss": cross_entropy(logits, label, reduction="none"),
        "margin": (logits * target).sum(dim=-1) - others.amax(dim=-1),
    }
