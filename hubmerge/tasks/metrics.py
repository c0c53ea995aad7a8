"""Metrics as local `evaluate.Metric` subclasses, so that none is loaded from the network."""

from __future__ import annotations

import math
from tempfile import TemporaryDirectory
from typing import Any

import datasets
import evaluate
import numpy as np

from hubmerge.errors import UnknownName


class Accuracy(evaluate.Metric):  # type: ignore[misc]  # evaluate ships no types
    """The share of correct predictions in [0, 1], with count and binomial standard error."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="The share of predictions that equal the label.",
            citation="",
            inputs_description="predictions and references: one class index per example.",
            features=datasets.Features(
                {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float | int]:
        correct = np.asarray(predictions) == np.asarray(references)
        value, count = float(correct.mean()), int(correct.size)
        return {"value": value, "count": count, "stderr": math.sqrt(value * (1 - value) / count)}


class TokenAccuracy(Accuracy):
    """The share of target tokens that were predicted correctly; all tokens have equal weight."""

    def _info(self) -> evaluate.MetricInfo:
        info = super()._info()
        info.description = "The share of target tokens predicted from the tokens before them."
        info.inputs_description = "predictions and references: one token per target position."
        return info


METRICS = {"accuracy": Accuracy, "token_accuracy": TokenAccuracy}


def make_metric(name: str) -> evaluate.Metric:
    """The metric with this name, computed in memory; raises UnknownName."""
    if name not in METRICS:
        raise UnknownName("metric", name, METRICS)
    # evaluate always creates a cache folder, which a metric in memory does not use.
    with TemporaryDirectory() as unused:
        return METRICS[name](keep_in_memory=True, cache_dir=unused)
