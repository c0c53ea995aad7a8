"""A choice without data, computed by hand: the knee of accuracy over norm, and the scale."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hubmerge.merging.registry import METHODS, method
from hubmerge.selection.grids import GRIDS
from hubmerge.selection.memory_merge import MemoryMerger
from hubmerge.selection.pool import Pool
from hubmerge.selection.proxy import proxy

from .builders import make_pool

OWN = [0.1 + 0.8 * share for share in (0.2, 0.8, 0.95, 1.0)]  # the base has 0.1


def make_pair(root: Path, own: list[float] | None = OWN) -> Pool:
    """Two experts whose task vectors are orthogonal and have norms 1, 2, 5 and 10."""
    base = {"x": np.zeros(2, np.float32)}
    experts = [
        [(step, {"x": np.eye(2, dtype=np.float32)[task] * norm}) for step, norm in
         ((1, 1.0), (2, 2.0), (4, 5.0), (8, 10.0))]
        for task in (0, 1)
    ]  # fmt: skip
    return make_pool(root, base, experts, own=[own, own] if own else None)


def test_the_knee_is_where_the_norm_grows_and_the_accuracy_does_not(tmp_path: Path) -> None:
    pool = make_pair(tmp_path)
    name = "task_arithmetic"
    choice = proxy(pool, MemoryMerger(pool, method(name)), GRIDS[name])
    assert choice is not None
    # Above the line from (0, 0) to (1, 1): .2 - .1, .8 - .2, .95 - .5, 1 - 1.
    assert pool.steps(choice) == (2, 2)
    # The sum of two orthogonal vectors of norm 2 has norm 2 sqrt 2.
    assert dict(choice.params)["scale"] == pytest.approx(1 / np.sqrt(2), abs=1e-3)


@pytest.mark.parametrize(("name", "scale"), [("ties", 1.0), ("average", None)])
def test_a_method_that_averages_needs_no_matched_scale(
    tmp_path: Path, name: str, scale: float | None
) -> None:
    pool = make_pair(tmp_path)
    choice = proxy(pool, MemoryMerger(pool, method(name)), GRIDS[name])
    assert choice is not None
    assert dict(choice.params).get("scale") == scale


def test_without_a_curve_there_is_no_choice(tmp_path: Path) -> None:
    pool = make_pair(tmp_path, own=None)
    assert proxy(pool, MemoryMerger(pool, method("average")), GRIDS["average"]) is None


def test_an_expert_that_never_improved_is_taken_at_the_first_step(tmp_path: Path) -> None:
    pool = make_pair(tmp_path, own=[0.1, 0.05, 0.1, 0.0])
    choice = proxy(pool, MemoryMerger(pool, method("average")), GRIDS["average"])
    assert choice is not None
    assert pool.steps(choice) == (1, 1)


def test_the_grids_match_the_paper() -> None:
    """Appendix C of arXiv 2506.14126; the scale of TIES also has values below 0.5."""
    assert len(list(GRIDS["task_arithmetic"].points)) == 20
    assert len(list(GRIDS["dare"].points)) == 11 * 3
    scales = GRIDS["ties"].values["scale"]
    assert scales[4:] == (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5)
    assert list(GRIDS["average"].points) == [{}]


def test_every_method_has_a_grid_of_known_parameters() -> None:
    assert GRIDS.keys() == METHODS.keys()
    assert all(
        grid.values.keys() <= METHODS[n].params.model_fields.keys() for n, grid in GRIDS.items()
    )
