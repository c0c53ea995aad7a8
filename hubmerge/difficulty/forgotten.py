"""What a merge forgot: rows that their own expert has right and the merge has wrong.

arXiv 2506.14126, fig. 4. Shapes: N rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from hubmerge.difficulty.bins import BINS, Ints, sums
from hubmerge.forgetting import Forgotten, OfClass
from hubmerge.predictions import Answers, Bools


def lost(before: ArrayLike, after: ArrayLike) -> Bools:
    """[N]: whether a row is right before and wrong after."""
    gone: Bools = np.asarray(before, bool) & ~np.asarray(after, bool)
    return gone


def forgotten(
    right_before: ArrayLike, right_after: ArrayLike, bins: Ints, count: int = BINS
) -> Forgotten:
    """Forgotten rows by bin, from what is right [N] under the expert and under the merge."""
    gone = sums(lost(right_before, right_after), bins, count)
    known = sums(np.asarray(right_before, bool), bins, count)
    return Forgotten(_whole(gone), _whole(known))


def by_class(before: Answers, after: Answers, classes: Sequence[str]) -> tuple[OfClass, ...]:
    """Each class in label order, with what most of its forgotten rows are taken for."""
    known = np.bincount(before.label[before.right], minlength=len(classes))
    gone = lost(before.right, after.right)
    taken: list[Counter[int]] = [Counter() for _ in classes]
    for label, said in zip(before.label[gone], after.predicted[gone], strict=True):
        taken[label][int(said)] += 1
    return tuple(
        OfClass(name, int(known[place]), seen.total(), _mostly(seen, classes))
        for place, (name, seen) in enumerate(zip(classes, taken, strict=True))
    )


def spread(rows: Ints, scores: ArrayLike, most: int) -> Ints:
    """So many of the rows at most, evenly from the hardest to the easiest of them."""
    values = np.asarray(scores, np.float64)[rows]
    ordered: Ints = rows[np.argsort(values, kind="stable")][::-1]
    if len(ordered) <= most:
        return ordered
    places = np.round(np.linspace(0, len(ordered) - 1, most)).astype(int)
    return ordered.take(places)


def _mostly(seen: Counter[int], classes: Sequence[str]) -> str:
    """The most frequent class, the first of them in a tie; "" for none."""
    return classes[min(seen, key=lambda label: (-seen[label], label))] if seen else ""


def _whole(values: ArrayLike) -> tuple[int, ...]:
    return tuple(int(value) for value in np.asarray(values))
