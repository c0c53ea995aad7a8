"""Metrics, with values by hand, through the interface of evaluate."""

from __future__ import annotations

from pathlib import Path

import evaluate
import pytest

from hubmerge.errors import UnknownName
from hubmerge.tasks.metrics import make_metric


def test_accuracy_by_hand() -> None:
    measure = make_metric("accuracy")
    assert isinstance(measure, evaluate.Metric)
    measure.add_batch(predictions=[0, 1, 1], references=[0, 1, 0])
    measure.add(prediction=2, reference=2)
    # Three of four are correct; sqrt(3/4 * 1/4 / 4).
    assert measure.compute() == {"value": 0.75, "count": 4, "stderr": pytest.approx(0.2165064)}


def test_all_correct_has_no_standard_error() -> None:
    result = make_metric("accuracy").compute(predictions=[1, 1], references=[1, 1])
    assert result == {"value": 1.0, "count": 2, "stderr": 0.0}


def test_all_tokens_have_equal_weight() -> None:
    measure = make_metric("token_accuracy")
    measure.add_batch(predictions=[7, 8, 9], references=[7, 8, 1])
    measure.add_batch(predictions=[5], references=[5])
    assert measure.compute() == {"value": 0.75, "count": 4, "stderr": pytest.approx(0.2165064)}
    assert "token" in measure.description


def test_metrics_can_be_combined() -> None:
    combined = evaluate.combine([make_metric("accuracy")])
    combined.add_batch(predictions=[0, 1], references=[0, 0])
    assert combined.compute()["value"] == 0.5


def test_no_file_is_left() -> None:
    measure = make_metric("accuracy")
    measure.add_batch(predictions=[0], references=[0])
    measure.compute()
    assert not Path(measure.data_dir).exists()


def test_unknown_metric() -> None:
    with pytest.raises(UnknownName, match="Unknown metric 'acuracy'"):
        make_metric("acuracy")
