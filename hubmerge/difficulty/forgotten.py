"""Forgotten rows: their own expert predicts them correctly, and the merge does not.

arXiv 2506.14126, fig. 4. Shapes: N rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from hubmerge.difficulty.bins import BINS, Ints, bin_sums
from hubmerge.forgetting import ClassForgetting, ForgottenByBin
from hubmerge.predictions import Bools, Predictions


def forgotten_rows(before: ArrayLike, after: ArrayLike) -> Bools:
    """Whether each row [N] is correct before and wrong after."""
    forgotten: Bools = np.asarray(before, bool) & ~np.asarray(after, bool)
    return forgotten


def forgotten_by_bin(
    right_before: ArrayLike, right_after: ArrayLike, bins: Ints, count: int = BINS
) -> ForgottenByBin:
    """Forgotten rows by bin, from whether expert and merge predict each row [N] correctly."""
    forgotten = bin_sums(forgotten_rows(right_before, right_after), bins, count)
    known = bin_sums(np.asarray(right_before, bool), bins, count)
    return ForgottenByBin(_to_ints(forgotten), _to_ints(known))


def forgotten_by_class(
    before: Predictions, after: Predictions, classes: Sequence[str]
) -> tuple[ClassForgetting, ...]:
    """Each class in label order, with the most common prediction of its forgotten rows."""
    known = np.bincount(before.label[before.correct], minlength=len(classes))
    forgotten = forgotten_rows(before.correct, after.correct)
    confusions: list[Counter[int]] = [Counter() for _ in classes]
    pairs = zip(before.label[forgotten], after.predicted[forgotten], strict=True)
    for label, predicted in pairs:
        confusions[label][int(predicted)] += 1
    return tuple(
        ClassForgetting(
            name, int(known[label]), counts.total(), _most_common_class(counts, classes)
        )
        for label, (name, counts) in enumerate(zip(classes, confusions, strict=True))
    )


def spread_by_score(rows: Ints, scores: ArrayLike, count: int) -> Ints:
    """At most `count` of the rows, evenly spaced from the hardest to the easiest."""
    values = np.asarray(scores, np.float64)[rows]
    ordered: Ints = rows[np.argsort(values, kind="stable")][::-1]
    if len(ordered) <= count:
        return ordered
    indices = np.round(np.linspace(0, len(ordered) - 1, count)).astype(int)
    return ordered.take(indices)


def _most_common_class(counts: Counter[int], classes: Sequence[str]) -> str:
    """The most frequent class, the first one in a tie; "" for none."""
    return classes[min(counts, key=lambda label: (-counts[label], label))] if counts else ""


def _to_ints(values: ArrayLike) -> tuple[int, ...]:
    return tuple(int(value) for value in np.asarray(values))
