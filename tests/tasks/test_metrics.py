"""Accuracy, worked by hand, through evaluate's own interface, without a file."""

from __future__ import annotations

from pathlib import Path

import evaluate
import pytest

from hubmerge.errors import UnknownName
from hubmerge.tasks.metrics import metric


def test_accuracy_by_hand() -> None:
    measure = metric("accuracy")
    assert isinstance(measure, evaluate.Metric)
    measure.add_batch(predictions=[0, 1, 1], references=[0, 1, 0])
    measure.add(prediction=2, reference=2)
    # Three of four; sqrt(3/4 * 1/4 / 4).
    assert measure.compute() == {"value": 0.75, "count": 4, "stderr": pytest.approx(0.2165064)}


def test_all_right_has_no_error() -> None:
    said = metric("accuracy").compute(predictions=[1, 1], references=[1, 1])
    assert said == {"value": 1.0, "count": 2, "stderr": 0.0}


def test_every_token_counts_alike() -> None:
    measure = metric("token_accuracy")
    measure.add_batch(predictions=[7, 8, 9], references=[7, 8, 1])
    measure.add_batch(predictions=[5], references=[5])
    assert measure.compute() == {"value": 0.75, "count": 4, "stderr": pytest.approx(0.2165064)}
    assert "token" in measure.description


def test_it_combines() -> None:
    both = evaluate.combine([metric("accuracy")])
    both.add_batch(predictions=[0, 1], references=[0, 0])
    assert both.compute()["value"] == 0.5


def test_it_leaves_no_file() -> None:
    measure = metric("accuracy")
    measure.add_batch(predictions=[0], references=[0])
    measure.compute()
    assert not Path(measure.data_dir).exists()


def test_unknown_metric() -> None:
    with pytest.raises(UnknownName, match="Unknown metric 'acuracy'"):
        metric("acuracy")
