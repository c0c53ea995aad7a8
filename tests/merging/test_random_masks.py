"""Masks of DARE: pinned bits, the same for every cut, of the right density, old ones for old."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from hubmerge.merging.params import DareParams
from hubmerge.merging.random_masks import random_mask
from hubmerge.merging.registry import method
from hubmerge.merging.settings import (
    format_settings,
    parse_settings,
    record_params,
    restore_settings,
)

SHA = "a" * 40
MASKS = pytest.mark.parametrize("masks", [1, 2])


@pytest.mark.parametrize(("masks", "expected"), [(1, "1111111101100100"), (2, "1100101111011101")])
def test_masks_never_change(masks: int, expected: str) -> None:
    """Changing these numbers changes every published DARE merge."""
    kept = random_mask(DareParams(density=0.5, seed=7, masks=masks), "w", "0" * 40, 0, 16)
    assert "".join(str(int(v)) for v in kept) == expected


@MASKS
def test_a_mask_depends_on_seed_tensor_and_sha(masks: int) -> None:
    def mask(seed: int = 0, tensor: str = "w", sha: str = SHA) -> bytes:
        return random_mask(DareParams(seed=seed, masks=masks), tensor, sha, 0, 192).tobytes()

    assert mask() == mask()
    assert len({mask(), mask(seed=1), mask(tensor="v"), mask(sha="b" * 40)}) == 4


@MASKS
@pytest.mark.parametrize("density", [0.3, 2**-14 + 2**-30, 1.0])
def test_a_mask_is_the_same_in_any_parts(masks: int, density: float) -> None:
    params, size = DareParams(density=density, masks=masks), 70_000
    whole = random_mask(params, "w", SHA, 0, size)
    cuts = [0, 1, 5, 6, 32_771, 65_536, size]
    parts = [random_mask(params, "w", SHA, start, stop - start) for start, stop in pairwise(cuts)]
    assert np.array_equal(np.concatenate(parts), whole)


@MASKS
@pytest.mark.parametrize("density", [0.5, 0.2, 1 / 3, 3e-5, 2**-18])
def test_the_share_of_ones_is_the_density(masks: int, density: float) -> None:
    size = 1 << 21
    kept = int(random_mask(DareParams(density=density, masks=masks), "w", SHA, 0, size).sum())
    deviation = np.sqrt(size * density * (1 - density))
    assert kept == pytest.approx(size * density, abs=3 * deviation)


def test_neighbours_and_experts_are_independent() -> None:
    size, params = 1 << 20, DareParams(density=0.5)
    first = random_mask(params, "w", SHA, 0, size)
    for other in (np.roll(first, 1), np.roll(first, 4), random_mask(params, "w", "b", 0, size)):
        assert np.mean(first == other) == pytest.approx(0.5, abs=0.002)  # 4 standard deviations


def test_a_merge_that_records_no_masks_has_the_first_ones() -> None:
    """So that merges and locks from before there were others build the same bytes."""
    dare = method("dare")
    recorded = {"density": 0.3, "rescale": "expected", "scale": 1.0, "seed": 7}
    params, settings = restore_settings(dare, recorded, ())
    assert params == DareParams(density=0.3, seed=7, masks=1)
    assert record_params(params, settings) == recorded
    assert parse_settings(dare, {"density": "0.3", "seed": "7", "masks": "1"}, 2)[0] == params
    new, settings = parse_settings(dare, {"density": "0.3", "seed": "7"}, 2)
    recorded = record_params(new, settings)
    assert recorded["masks"] == 2
    assert restore_settings(dare, recorded, ()) == (new, settings)
    assert parse_settings(dare, format_settings(recorded, ()), 2) == (new, settings)
