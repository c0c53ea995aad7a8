"""Which rows of the data a split has: named, or carved by a seeded permutation."""

from __future__ import annotations

import random

import torch

from hubmerge.specs import Carve, SplitsSpec

SPLITS = ("train", "validation", "test")


def places(splits: SplitsSpec, name: str, count: int) -> list[int]:
    """Which of the `count` rows of its source belong to a split, such that no two splits share one.

    What test carves from that source goes first, then validation, and the rest stays.
    """
    left = list(range(count))
    for carver in carvers(splits, splits.sources[name]):
        kept, carved = carve(len(left), getattr(splits, carver))
        if carver == name:
            return [left[place] for place in carved]
        left = [left[place] for place in kept]
    return left


def carvers(splits: SplitsSpec, source: str) -> list[str]:
    """The splits that are carved from a split of the data, in the order in which they are."""
    said = {"test": splits.test, "validation": splits.validation}
    return [name for name, share in said.items() if isinstance(share, Carve) and share.of == source]


def carve(count: int, share: Carve) -> tuple[list[int], list[int]]:
    """Indices kept and carved, in the order of the public code that `share.order` names."""
    carved = min(int(count * share.fraction), share.most or count)
    if share.count is not None:
        carved = min(share.count, count)
    if share.order == "python":
        order = list(range(count))
        random.Random(share.seed).shuffle(order)
        return order[carved:], order[:carved]
    # As torch's `random_split([count - carved, carved])` gives them.
    order = torch.randperm(count, generator=torch.Generator().manual_seed(share.seed)).tolist()
    return order[: count - carved], order[count - carved :]
