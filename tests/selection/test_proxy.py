"""A choice without data, by hand: the knee of accuracy over length, and the matched scale."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hubmerge.merging.registry import METHODS, method
from hubmerge.selection.grids import GRIDS
from hubmerge.selection.memory_merge import Blender
from hubmerge.selection.pool import Pool
from hubmerge.selection.proxy import proxy

from .worlds import make_pool

OWN = [0.1 + 0.8 * share for share in (0.2, 0.8, 0.95, 1.0)]  # the base has 0.1


def world(root: Path, own: list[float] | None = OWN) -> Pool:
    """Two experts that move 1, 2, 5 and 10 along directions at a right angle."""
    base = {"x": np.zeros(2, np.float32)}
    experts = [
        [(step, {"x": np.eye(2, dtype=np.float32)[t] * far}) for step, far in
         ((1, 1.0), (2, 2.0), (4, 5.0), (8, 10.0))]
        for t in (0, 1)
    ]  # fmt: skip
    return make_pool(root, base, experts, own=[own, own] if own else None)


def test_the_knee_is_where_the_way_goes_on_and_the_accuracy_does_not(tmp_path: Path) -> None:
    pool = world(tmp_path)
    name = "task_arithmetic"
    found = proxy(pool, Blender(pool, method(name)), GRIDS[name])
    assert found is not None
    # Above the line from (0, 0) to (1, 1): .2 - .1, .8 - .2, .95 - .5, 1 - 1.
    assert pool.steps(found) == (2, 2)
    # The sum of two vectors of length 2 at a right angle has length 2 sqrt 2.
    assert dict(found.params)["scale"] == pytest.approx(1 / np.sqrt(2), abs=1e-3)


@pytest.mark.parametrize(("name", "scale"), [("ties", 1.0), ("average", None)])
def test_a_mean_has_its_size_already(tmp_path: Path, name: str, scale: float | None) -> None:
    pool = world(tmp_path)
    found = proxy(pool, Blender(pool, method(name)), GRIDS[name])
    assert found is not None
    assert dict(found.params).get("scale") == scale


def test_without_a_curve_nothing_is_claimed(tmp_path: Path) -> None:
    pool = world(tmp_path, own=None)
    assert proxy(pool, Blender(pool, method("average")), GRIDS["average"]) is None


def test_an_expert_that_never_got_better_is_taken_at_its_first_step(tmp_path: Path) -> None:
    pool = world(tmp_path, own=[0.1, 0.05, 0.1, 0.0])
    found = proxy(pool, Blender(pool, method("average")), GRIDS["average"])
    assert found is not None
    assert pool.steps(found) == (1, 1)


def test_the_grids_are_the_papers() -> None:
    """Appendix C of arXiv 2506.14126; the scale of TIES goes further down than its 0.5."""
    assert len(list(GRIDS["task_arithmetic"].points)) == 20
    assert len(list(GRIDS["dare"].points)) == 11 * 3
    scales = GRIDS["ties"].values["scale"]
    assert scales[4:] == (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5)
    assert list(GRIDS["average"].points) == [{}]


def test_every_method_has_a_grid_of_its_own_parameters() -> None:
    assert GRIDS.keys() == METHODS.keys()
    assert all(
        grid.values.keys() <= METHODS[n].params.model_fields.keys() for n, grid in GRIDS.items()
    )
