"""Metrics as `evaluate.Metric` subclasses of our own: nothing is loaded by name from a network."""

from __future__ import annotations

import math
from tempfile import TemporaryDirectory
from typing import Any

import datasets
import evaluate
import numpy as np

from hubmerge.errors import UnknownName


class Accuracy(evaluate.Metric):  # type: ignore[misc]  # evaluate ships no types
    """Raw share of right predictions in [0, 1], with count and binomial standard error."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Share of predictions that equal the label.",
            citation="",
            inputs_description="predictions and references: one class index per example.",
            features=datasets.Features(
                {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float | int]:
        right = np.asarray(predictions) == np.asarray(references)
        value, count = float(right.mean()), int(right.size)
        return {"value": value, "count": count, "stderr": math.sqrt(value * (1 - value) / count)}


class TokenAccuracy(Accuracy):
    """Raw share of the target's tokens that were predicted, every token counting alike."""

    def _info(self) -> evaluate.MetricInfo:
        said = super()._info()
        said.description = "Share of the target's tokens that are predicted from those before them."
        said.inputs_description = "predictions and references: one token per place in a target."
        return said


METRICS = {"accuracy": Accuracy, "token_accuracy": TokenAccuracy}


def metric(name: str) -> evaluate.Metric:
    """The metric of that name, working in memory; raises UnknownName."""
    if name not in METRICS:
        raise UnknownName("metric", name, METRICS)
    # evaluate insists on making a folder that a metric in memory never uses.
    with TemporaryDirectory() as unused:
        return METRICS[name](keep_in_memory=True, cache_dir=unused)
