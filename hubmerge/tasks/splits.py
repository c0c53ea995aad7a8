"""Which rows of the data belong to a split; splits can be carved by a seeded permutation."""

from __future__ import annotations

import random

import torch

from hubmerge.specs import Carve, SplitsSpec

SPLITS = ("train", "validation", "test")


def split_indices(splits: SplitsSpec, name: str, count: int) -> list[int]:
    """The indices of a split in the `count` rows of its source; splits do not overlap.

    Test is carved from the source first, then validation; the source keeps the rest.
    """
    remaining = list(range(count))
    for carved_name in carved_splits(splits, splits.sources[name]):
        kept, carved = carve(len(remaining), getattr(splits, carved_name))
        if carved_name == name:
            return [remaining[index] for index in carved]
        remaining = [remaining[index] for index in kept]
    return remaining


def carved_splits(splits: SplitsSpec, source: str) -> list[str]:
    """The splits that are carved from a split of the data, in the order of carving."""
    by_name = {"test": splits.test, "validation": splits.validation}
    return [name for name, spec in by_name.items() if isinstance(spec, Carve) and spec.of == source]


def carve(count: int, share: Carve) -> tuple[list[int], list[int]]:
    """Indices that stay and indices that are carved, in the order of the code `share.order`."""
    carved = min(int(count * share.fraction), share.most or count)
    if share.count is not None:
        carved = min(share.count, count)
    if share.order == "python":
        order = list(range(count))
        random.Random(share.seed).shuffle(order)
        return order[carved:], order[:carved]
    # The same as torch's `random_split([count - carved, carved])`.
    order = torch.randperm(count, generator=torch.Generator().manual_seed(share.seed)).tolist()
    return order[: count - carved], order[count - carved :]
