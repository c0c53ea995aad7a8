"""The proxies that a study compares with the knee, on experts in two dimensions, by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hubmerge.merging.registry import method
from hubmerge.selection.choice import Choice
from hubmerge.selection.grids import GRIDS
from hubmerge.selection.memory_merge import MemoryMerger
from recipes.studies.selection.proxies import PROXIES
from tests.selection.builders import make_pool

NAME = "task_arithmetic"
# The first expert moves along (1, 0); the second turns from (0, 1) to it, at half its length.
FIRST = [(1, [1.0, 0.0]), (2, [2.0, 0.0]), (4, [4.0, 0.0])]
SECOND = [(1, [0.0, 0.5]), (2, [0.0, 0.8]), (4, [2.0, 0.0])]
OWN = [0.2, 0.59, 0.6]  # 0.1 at step 0, so 95 % of the rise are reached at 0.575


@pytest.mark.parametrize(
    ("proxy", "steps", "weights"),
    [
        ("rise", (2, 2), (1.0, 1.0)),
        ("half norm", (2, 4), (1.0, 1.0)),  # norms of 1, 2, 4 and of 0.5, 0.8, 2
        ("half alignment", (2, 2), (1.0, 1.0)),  # cosines of 0, 0 and 1
        ("inverse norm", (4, 4), (0.75, 1.5)),  # norms of 4 and 2, of which the mean is 3
    ],
)
def test_each_proxy_chooses_by_its_rule(
    tmp_path: Path, proxy: str, steps: tuple[int, ...], weights: tuple[float, ...]
) -> None:
    experts = [
        [(step, {"x": np.array(values, np.float32)}) for step, values in expert]
        for expert in (FIRST, SECOND)
    ]
    pool = make_pool(tmp_path, {"x": np.zeros(2, np.float32)}, experts, own=[OWN, OWN])
    choice = PROXIES[proxy](pool, MemoryMerger(pool, method(NAME)), GRIDS[NAME])
    assert isinstance(choice, Choice)
    assert pool.steps(choice) == steps
    assert choice.weights == weights
