"""The expected calibration error, worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from hubmerge.calibration import calibration_error, calibration_stderr, read_confidences
from hubmerge.learners.classification import Classifier, ImageLearner
from hubmerge.tasks.data import RankExample
from tests.learners.builders import batch_of, counting_learner

CPU = torch.device("cpu")


def test_gaps_are_weighted_by_the_rows_of_their_bin() -> None:
    # Bins of a fifteenth: 0.95 and 0.97 share one, 0.5 is alone.
    confidence, correct = np.array([0.95, 0.97, 0.5]), np.array([1.0, 0.0, 1.0])
    expected = (2 * abs(0.96 - 0.5) + abs(0.5 - 1.0)) / 3
    assert calibration_error(confidence, correct) == pytest.approx(expected)
    assert calibration_error(np.ones(4), np.ones(4)) == 0
    assert calibration_error(np.ones(4), np.zeros(4)) == 1


def test_rows_that_agree_have_no_error_of_sampling() -> None:
    assert calibration_stderr(np.full(9, 0.8), np.ones(9)) == pytest.approx(0)
    assert 0 < calibration_stderr(np.full(9, 0.8), np.array([1.0] * 5 + [0.0] * 4)) < 0.5


class Pixels(nn.Module):
    """The first pixels of an image are its logits."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images[:, 0, 0, :]


def test_confidences_of_classes() -> None:
    learner = ImageLearner(Classifier(Pixels(), nn.Identity()), torch.as_tensor)
    image = torch.tensor([math.log(3), 0.0]).expand(3, 1, -1)
    batch = batch_of(learner, (image, 0), (image, 1))
    confidence, correct = read_confidences(learner, learner.network, [batch], CPU)
    assert confidence.tolist() == pytest.approx([0.75, 0.75])
    assert correct.tolist() == [1, 0]


def test_confidences_of_choices_are_relative_to_the_others() -> None:
    """The model counts: its logits are 2 for the next number and 0 for the others."""
    learner = counting_learner()
    rows = RankExample("3", ("4", "7"), 0), RankExample("3", ("4", "7", "8"), 1)
    batch = batch_of(learner, *rows)
    confidence, correct = read_confidences(learner, learner.network, [batch], CPU)
    # What follows 4, 7 and 8 is the end of the text, which 8 alone is followed by.
    two = math.exp(2) / (math.exp(2) + 1)
    three = math.exp(2) / (2 * math.exp(2) + 1)
    assert confidence.tolist() == pytest.approx([two, three])
    assert correct.tolist() == [1, 0]
