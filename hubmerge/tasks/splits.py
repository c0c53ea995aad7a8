"""Which rows of the data belong to a split; splits can be carved by a seeded permutation."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from hubmerge.specs import Carve, SplitsSpec

SPLITS = ("train", "validation", "test")


def split_indices(
    splits: SplitsSpec, name: str, count: int, labels: Sequence[Any] = ()
) -> list[int]:
    """The indices of a split in the `count` rows of its source; splits do not overlap.

    Test is carved from the source first, then validation; the source keeps the rest. `labels` are
    those of all rows, for splits that are stratified.
    """
    remaining = list(range(count))
    for carved_name in carved_splits(splits, splits.sources[name]):
        share: Carve = getattr(splits, carved_name)
        own = [labels[index] for index in remaining] if share.stratify and labels else ()
        kept, carved = carve(len(remaining), share, own)
        if carved_name == name:
            return [remaining[index] for index in carved]
        remaining = [remaining[index] for index in kept]
    return remaining


def carved_splits(splits: SplitsSpec, source: str) -> list[str]:
    """The splits that are carved from a split of the data, in the order of carving."""
    by_name = {"test": splits.test, "validation": splits.validation}
    return [name for name, spec in by_name.items() if isinstance(spec, Carve) and spec.of == source]


def is_stratified(splits: SplitsSpec) -> bool:
    """Whether a split is carved by class."""
    return any(
        isinstance(share, Carve) and share.stratify for share in (splits.test, splits.validation)
    )


def carve(count: int, share: Carve, labels: Sequence[Any] = ()) -> tuple[list[int], list[int]]:
    """Indices that stay and indices that are carved, in the order of the code `share.order`.

    With `labels`, one for each row, so many of each class are carved that the shares are equal, up
    to one row; the last rows of a class in that order.
    """
    carved = min(int(count * share.fraction), share.most or count)
    if share.count is not None:
        carved = min(share.count, count)
    order = _order(count, share)
    if not labels:
        cut = carved if share.order == "python" else count - carved
        first, second = order[:cut], order[cut:]
        return (second, first) if share.order == "python" else (first, second)
    quotas = _quotas(Counter(labels), carved)
    taken = set[int]()
    for index in reversed(order):
        if quotas[labels[index]]:
            quotas[labels[index]] -= 1
            taken.add(index)
    return [n for n in order if n not in taken], [n for n in order if n in taken]


def _quotas(counts: Mapping[Any, int], carved: int) -> dict[Any, int]:
    """How many rows each class gives, by largest remainders; of equal ones, the larger class."""
    total = sum(counts.values())
    exact = {label: count * carved / total for label, count in counts.items()}
    quotas = {label: int(share) for label, share in exact.items()}
    by_remainder = sorted(
        counts, key=lambda label: (quotas[label] - exact[label], -counts[label], str(label))
    )
    for label in by_remainder[: carved - sum(quotas.values())]:
        quotas[label] += 1
    return quotas


def _order(count: int, share: Carve) -> list[int]:
    if share.order == "python":
        order = list(range(count))
        random.Random(share.seed).shuffle(order)
        return order
    # Without labels the same as torch's `random_split([count - carved, carved])`.
    permutation = torch.randperm(count, generator=torch.Generator().manual_seed(share.seed))
    return [int(index) for index in permutation]
