"""Blocks of large arrays."""

from __future__ import annotations

import numpy as np
import pytest

from hubmerge.weights.array_blocks import BLOCK_SIZE, blocks


@pytest.mark.parametrize(
    "shape", [(), (0, 3), (1,), (BLOCK_SIZE,), (2, BLOCK_SIZE), (3, BLOCK_SIZE - 5)]
)
def test_every_entry_is_in_one_block_in_order(shape: tuple[int, ...]) -> None:
    values = np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape)
    doubled = np.empty_like(values)
    for target, block in blocks(doubled, values):
        assert target.size == block.size <= BLOCK_SIZE
        target[:] = block * 2
    assert (doubled == values * 2).all()
