"""Several rows in one sequence, kept apart by their positions, so that little is padding.

Positions start anew at every row; from this transformers makes attention that stays within rows.
Shapes: S sequences, L tokens of the longest.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hubmerge.learners.classification import pad_right
from hubmerge.learners.learner import Batch


def pack_rows(lengths: Sequence[int], limit: int) -> list[list[int]]:
    """Which rows share a sequence: their numbers, for each of about as few sequences as possible.

    A sequence has at most `limit` tokens, or as many as the longest row. Long rows come first, each
    into the shortest sequence so far, so that sequences are of similar length (Graham's rule,
    doi:10.1137/0117039). The result depends on the lengths alone.
    """
    limit = max(limit, *lengths)
    count = -(-sum(lengths) // limit)
    while True:
        sequences, sizes = _spread(lengths, count)
        if max(sizes) <= limit:
            return sequences
        count += 1


def _spread(lengths: Sequence[int], count: int) -> tuple[list[list[int]], list[int]]:
    """Rows over `count` sequences, and the tokens of each sequence."""
    sequences: list[list[int]] = [[] for _ in range(count)]
    sizes = [0] * count
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        shortest = sizes.index(min(sizes))
        sequences[shortest].append(row)
        sizes[shortest] += lengths[row]
    return sequences, sizes


def packed_batch(
    texts: Sequence[Tensor], labels: Sequence[Tensor], limit: int, pad_id: int, ignored: int
) -> Batch:
    """Rows as `input_ids`, `position_ids` and `labels` [S, L], without a mask.

    Padding at the end of a sequence is a row of its own, without labels.
    """
    sequences = pack_rows([len(text) for text in texts], limit)
    ids = [torch.cat([texts[row] for row in rows]) for rows in sequences]
    longest = max(map(len, ids))
    positions = [
        torch.cat(
            [*(torch.arange(len(texts[row])) for row in rows), torch.arange(longest - len(s))]
        )
        for rows, s in zip(sequences, ids, strict=True)
    ]
    counted = [torch.cat([labels[row] for row in rows]) for rows in sequences]
    return {
        "input_ids": pad_right(ids, pad_id),
        "position_ids": torch.stack(positions),
        "labels": pad_right(counted, ignored),
    }
