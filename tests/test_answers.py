"""What a model says of a row: EL2N, loss and margin worked out by hand."""

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
from hubmerge.predictions import Answers, read_answers
from tests.learners.worlds import batch_of, counting

CPU = torch.device("cpu")
close = pytest.approx
LN3 = math.log(3)


class Pixels(nn.Module):
    """The first pixels of an image are its logits."""

    def forward(self, images: Tensor) -> Tensor:
        return images[:, 0, 0, :]


def learner() -> ImageLearner:
    return ImageLearner(Classifier(Pixels(), nn.Identity()), torch.as_tensor)


def asked(*rows: tuple[list[float], int], at_once: int = 2) -> Answers:
    """Rows of logits and their label, in batches of two."""
    its = learner()
    examples = [(torch.tensor(logits).expand(3, 1, -1), label) for logits, label in rows]
    parts = [examples[start : start + at_once] for start in range(0, len(rows), at_once)]
    return read_answers(its, its.network, (batch_of(its, *part) for part in parts), CPU)


def test_each_row_by_hand() -> None:
    # softmax of (ln 3, 0) is (3/4, 1/4), of (0, 0, 0) a third each.
    two = asked(([LN3, 0.0], 0), ([LN3, 0.0], 1))
    assert two.predicted.tolist() == [0, 0]
    assert two.right.tolist() == [True, False]
    assert two.el2n.tolist() == close([math.sqrt(2) / 4, 3 * math.sqrt(2) / 4])
    assert two.loss.tolist() == close([math.log(4 / 3), math.log(4)])
    assert two.margin.tolist() == close([LN3, -LN3])
    assert two.accuracy == 0.5
    three = asked(([0.0, 0.0, 0.0], 2))
    assert three.el2n.tolist() == close([math.sqrt(6) / 3])
    assert (three.loss.tolist(), three.margin.tolist()) == (close([LN3]), [0.0])


def test_rows_keep_their_order_over_batches() -> None:
    rows = [([float(place), 0.0], place % 2) for place in range(5)]
    said = asked(*rows)
    assert (len(said), said.label.tolist()) == (5, [0, 1, 0, 1, 0])
    assert said.margin.tolist() == [0.0, -1.0, 2.0, -3.0, 4.0]
    assert said.el2n.tolist() == asked(*rows, at_once=5).el2n.tolist()


@given(st.lists(st.lists(st.floats(-50, 50, width=32), min_size=3, max_size=3), min_size=1))
def test_a_margin_above_zero_is_a_right_answer(rows: list[list[float]]) -> None:
    said = asked(*((logits, place % 3) for place, logits in enumerate(rows)))
    assert all(said.right[said.margin > 0])
    assert not any(said.right[said.margin < 0])
    assert ((said.el2n >= 0) & (said.el2n <= math.sqrt(2) + 1e-12)).all()


def test_it_is_asked_in_evaluation_mode_and_may_be_kept_without_its_network() -> None:
    its = learner()
    network = Classifier(nn.Sequential(Pixels(), nn.Dropout(1.0)), nn.Identity()).train()
    batch = batch_of(its, (torch.tensor([2.0, 0.0]).expand(3, 1, 2), 0))
    assert read_answers(without_network(its), network, [batch], CPU).margin.tolist() == [2.0]


def test_answers_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(CheckpointError, match="not numbers"):
        asked(([math.nan, 0.0], 0))


def test_a_task_without_classes_is_refused() -> None:
    its = counting()
    with pytest.raises(UsageError, match="images or texts with classes only"):
        read_answers(its, its.network, [], CPU)
