"""Predictions for a few rows, written by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hubmerge.predictions import Predictions


def predictions(
    label: Sequence[int],
    predicted: Sequence[int],
    el2n: Sequence[float] = (),
    loss: Sequence[float] = (),
    margin: Sequence[float] = (),
) -> Predictions:
    """Predictions; a value that is not given is 0 for every row."""
    zeros = (0.0,) * len(label)
    floats = (np.array(values or zeros, np.float64) for values in (el2n, loss, margin))
    return Predictions(np.array(label), np.array(predicted), *floats)
