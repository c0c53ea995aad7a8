"""How far the confidence of predictions is from how often they are right.

Shapes: N rows, B rows of a batch, C classes or choices.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hubmerge.learners.classification import check_finite
from hubmerge.learners.learner import Batch, Learner

Floats = NDArray[np.float64]
BINS = 15
_RESAMPLES, _SEED = 200, 0


@torch.inference_mode()
def read_confidences(
    learner: Learner, network: nn.Module, batches: Iterable[Batch], device: torch.device
) -> tuple[Floats, Floats]:
    """The probability of each predicted class or choice, and 1 where it is right, else 0; both [N].

    Of choices, probabilities are relative to those of the other choices of the row. Raises
    CheckpointError for scores that are not finite.
    """
    network.eval()
    confidences, correct = [], []
    for batch in batches:
        on_device = {name: tensor.to(device) for name, tensor in batch.items()}
        scores = cast(Any, learner).scores(network, on_device).cpu().double()
        check_finite(scores.amax(dim=-1))  # a choice that a row lacks is at minus infinity
        probability, predicted = scores.softmax(dim=-1).max(dim=-1)
        confidences.append(probability.numpy())
        reference = batch["label"] if "label" in batch else batch["answer"]
        correct.append((predicted == reference).double().numpy())
    return np.concatenate(confidences), np.concatenate(correct)


def calibration_error(confidence: Floats, correct: Floats) -> float:
    """The expected calibration error of N rows over 15 bins of equal width, in [0, 1].

    That is the difference of mean confidence and accuracy in a bin, weighted by its rows. Bins
    include their upper end. Source: Guo et al., arXiv 1706.04599, section 2.
    """
    bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    gaps = np.bincount(bins, weights=confidence - correct, minlength=BINS)
    return float(np.abs(gaps).sum() / len(confidence))


def calibration_stderr(confidence: Floats, correct: Floats) -> float:
    """The standard error of the calibration error, by a bootstrap over rows."""
    generator = np.random.Generator(np.random.Philox(_SEED))
    count = len(confidence)
    draws = (generator.integers(count, size=count) for _ in range(_RESAMPLES))
    errors = [calibration_error(confidence[rows], correct[rows]) for rows in draws]
    return float(np.std(errors, ddof=1))
