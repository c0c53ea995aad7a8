"""Large arrays a piece at a time."""

from __future__ import annotations

import numpy as np
import pytest

from hubmerge.weights.array_blocks import BLOCK, blocks


@pytest.mark.parametrize("shape", [(), (0, 3), (1,), (BLOCK,), (2, BLOCK), (3, BLOCK - 5)])
def test_every_entry_is_met_once_and_in_order(shape: tuple[int, ...]) -> None:
    values = np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape)
    doubled = np.empty_like(values)
    for place, block in blocks(doubled, values):
        assert place.size == block.size <= BLOCK
        place[:] = block * 2
    assert (doubled == values * 2).all()
