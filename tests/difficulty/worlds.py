"""Answers to a few rows, written by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hubmerge.predictions import Answers


def answers(
    label: Sequence[int],
    predicted: Sequence[int],
    el2n: Sequence[float] = (),
    loss: Sequence[float] = (),
    margin: Sequence[float] = (),
) -> Answers:
    """What is not said is 0 for every row."""
    nothing = (0.0,) * len(label)
    floats = (np.array(its or nothing, np.float64) for its in (el2n, loss, margin))
    return Answers(np.array(label), np.array(predicted), *floats)
