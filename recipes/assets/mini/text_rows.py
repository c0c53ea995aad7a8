"""The splits of a text task: which texts go where. Every text has its place by a hash of itself."""

import hashlib
import re
from collections.abc import Callable, Iterable

from recipes.assets.mini.rows import SEED
from recipes.assets.mini.text_sources import Example

COUNTS = {"train": 2000, "validation": 200, "test": 600}
"""The most rows of each split."""
PARTS = {"train": 10, "validation": 1, "test": 3}
"""How the texts of a class are divided; a small source fills the splits less, but in proportion."""


def split_rows(task: str, classes: int, examples: Iterable[Example]) -> dict[str, list[Example]]:
    """Return the rows of each split: as many of one class as of another, as far as there are.

    Raises ValueError if a class has too few texts to be in every split.
    """
    ordered = sorted(distinct(examples), key=sort_key(task))
    pools = [cut([row for row in ordered if row.label == label]) for label in range(classes)]
    # A second address for the rows: by the first, each class is a stretch of its own.
    return {
        split: sorted(pick([pool[split] for pool in pools], most), key=sort_key(f"{task} {split}"))
        for split, most in COUNTS.items()
    }


def distinct(examples: Iterable[Example]) -> list[Example]:
    """Return the examples without repeated texts, and without texts of more than one class."""
    first: dict[str, Example] = {}
    labels: dict[str, set[int]] = {}
    for example in examples:
        key = normalize(example.text)
        first.setdefault(key, example)
        labels.setdefault(key, set()).add(example.label)
    return [example for key, example in first.items() if len(labels[key]) == 1]


def normalize(text: str) -> str:
    """Return the words of a text alone: texts that differ in case or marks only are the same.

    A text without words is itself.
    """
    return " ".join(re.findall(r"\w+", text.casefold())) or text


def sort_key(address: str) -> Callable[[Example], bytes]:
    """Return the key that puts examples in an order that looks random.

    It hangs on the seed, the address and the text, not on the order in which a source lists them.
    """
    return lambda row: hashlib.sha256(f"{SEED} {address} {normalize(row.text)}".encode()).digest()


def cut(examples: list[Example]) -> dict[str, list[Example]]:
    """Cut the examples of a class into the splits' parts; fewer than a whole part is left over."""
    size = len(examples) // sum(PARTS.values())
    if size == 0:
        raise ValueError(f"{len(examples)} texts cannot be cut into parts {PARTS}")
    pools, start = {}, 0
    for split, parts in PARTS.items():
        pools[split] = examples[start : start + parts * size]
        start += parts * size
    return pools


def pick(pools: list[list[Example]], most: int) -> list[Example]:
    """Return up to `most` examples, the beginnings of the pools, evenly."""
    shares = even_shares([len(pool) for pool in pools], most)
    return [row for pool, share in zip(pools, shares, strict=True) for row in pool[:share]]


def even_shares(sizes: list[int], most: int) -> list[int]:
    """Return how much to take from pools of these sizes: as even as can be, `most` in all."""
    shares = [0] * len(sizes)
    for _ in range(min(most, sum(sizes))):
        open_pools = [pool for pool, size in enumerate(sizes) if shares[pool] < size]
        shares[min(open_pools, key=lambda pool: shares[pool])] += 1
    return shares
