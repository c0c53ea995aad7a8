"""Predictions row by row: EL2N, loss and margin worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from hubmerge.errors import CheckpointError, UsageError
from hubmerge.learners.classification import Classifier, ImageLearner
from hubmerge.learners.learner import without_network
from hubmerge.predictions import Predictions, read_predictions
from tests.learners.builders import batch_of, counting_learner

CPU = torch.device("cpu")
close = pytest.approx
LN3 = math.log(3)


class Pixels(nn.Module):
    """The first pixels of an image are its logits."""

    def forward(self, images: Tensor) -> Tensor:
        return images[:, 0, 0, :]


def learner() -> ImageLearner:
    return ImageLearner(Classifier(Pixels(), nn.Identity()), torch.as_tensor)


def predict_rows(*rows: tuple[list[float], int], batch_size: int = 2) -> Predictions:
    """The predictions for rows of logits and their label, by default in batches of two."""
    pixels = learner()
    examples = [(torch.tensor(logits).expand(3, 1, -1), label) for logits, label in rows]
    parts = [examples[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    return read_predictions(
        pixels, pixels.network, (batch_of(pixels, *part) for part in parts), CPU
    )


def test_each_row_by_hand() -> None:
    # softmax of (ln 3, 0) is (3/4, 1/4), of (0, 0, 0) a third each.
    two = predict_rows(([LN3, 0.0], 0), ([LN3, 0.0], 1))
    assert two.predicted.tolist() == [0, 0]
    assert two.correct.tolist() == [True, False]
    assert two.el2n.tolist() == close([math.sqrt(2) / 4, 3 * math.sqrt(2) / 4])
    assert two.loss.tolist() == close([math.log(4 / 3), math.log(4)])
    assert two.margin.tolist() == close([LN3, -LN3])
    assert two.accuracy == 0.5
    three = predict_rows(([0.0, 0.0, 0.0], 2))
    assert three.el2n.tolist() == close([math.sqrt(6) / 3])
    assert (three.loss.tolist(), three.margin.tolist()) == (close([LN3]), [0.0])


def test_rows_keep_their_order_over_batches() -> None:
    rows = [([float(row), 0.0], row % 2) for row in range(5)]
    predictions = predict_rows(*rows)
    assert (len(predictions), predictions.label.tolist()) == (5, [0, 1, 0, 1, 0])
    assert predictions.margin.tolist() == [0.0, -1.0, 2.0, -3.0, 4.0]
    assert predictions.el2n.tolist() == predict_rows(*rows, batch_size=5).el2n.tolist()


@given(st.lists(st.lists(st.floats(-50, 50, width=32), min_size=3, max_size=3), min_size=1))
def test_a_margin_above_zero_is_a_correct_prediction(rows: list[list[float]]) -> None:
    predictions = predict_rows(*((logits, row % 3) for row, logits in enumerate(rows)))
    assert all(predictions.correct[predictions.margin > 0])
    assert not any(predictions.correct[predictions.margin < 0])
    assert ((predictions.el2n >= 0) & (predictions.el2n <= math.sqrt(2) + 1e-12)).all()


def test_predictions_are_made_in_evaluation_mode_by_the_given_network() -> None:
    pixels = learner()
    network = Classifier(nn.Sequential(Pixels(), nn.Dropout(1.0)), nn.Identity()).train()
    batch = batch_of(pixels, (torch.tensor([2.0, 0.0]).expand(3, 1, 2), 0))
    assert read_predictions(without_network(pixels), network, [batch], CPU).margin.tolist() == [2.0]


def test_logits_that_are_not_finite_are_refused() -> None:
    with pytest.raises(CheckpointError, match="not finite"):
        predict_rows(([math.nan, 0.0], 0))


def test_a_task_without_classes_is_refused() -> None:
    counting = counting_learner()
    with pytest.raises(UsageError, match="images or texts with classes"):
        read_predictions(counting, counting.network, [], CPU)
