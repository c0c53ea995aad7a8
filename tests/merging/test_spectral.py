"""Methods on singular vectors merge products within the spaces of their factors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hubmerge.merging.deltas import Deltas
from hubmerge.merging.engine import merge
from hubmerge.merging.plan import Expert, MergePlan
from hubmerge.merging.registry import method, parse_params
from hubmerge.weights.checkpoint import open_checkpoint
from hubmerge.weights.lora import LowRankMatrix
from tests.weights.adapters import save_adapter, write_base

CASES: list[tuple[str, dict[str, Any]]] = [
    ("tsv", {}),
    ("iso_c", {"scale": 0.5}),
    *(("knots", {"merge": how, "density": 0.4}) for how in ("ties", "mean", "sum")),
    *(("core_space", {"merge": how, "density": 0.4}) for how in ("ties", "sum", "tsv", "iso_c")),
]
# Outputs, inputs and the experts' ranks. In the second case the ranks leave out some triples of
# tsv, in the third they are as many as the shorter side, and in the last one expert has no change.
SHAPES = [
    ((24, 40), (3, 2, 4)),
    ((12, 30), (5, 5)),
    ((30, 12), (6, 6)),
    ((20, 20), (2, 0)),
]


def make_deltas(shape: tuple[int, int], ranks: tuple[int, ...]) -> Deltas:
    """Products of random factors, with the products themselves in float64."""
    source = np.random.default_rng(sum(ranks))
    factors = tuple(
        LowRankMatrix(source.normal(size=(shape[0], r)), source.normal(size=(r, shape[1])), 0.5)
        for r in ranks
    )
    values = [product.rows(0, shape[0]) for product in factors]
    names = tuple("abc"[: len(ranks)])
    return Deltas("w", values, (1.0, -0.5, 2.0)[: len(ranks)], names, factors=factors)


@pytest.mark.parametrize(("name", "params"), CASES, ids=str)
@pytest.mark.parametrize(("shape", "ranks"), SHAPES, ids=str)
def test_factors_merge_like_the_matrices(
    name: str, params: dict[str, Any], shape: tuple[int, int], ranks: tuple[int, ...]
) -> None:
    way, deltas = method(name), make_deltas(shape, ranks)
    merged = way.combine(deltas, parse_params(way, params), None)
    expected = way.combine(replace(deltas, factors=()), parse_params(way, params), None)
    np.testing.assert_allclose(merged, expected, rtol=0, atol=1e-9 * np.abs(expected).max())


@pytest.mark.parametrize("mixed", [False, True])
def test_a_change_that_is_no_product_is_merged_as_a_matrix(mixed: bool) -> None:
    deltas = make_deltas((24, 40), (3, 2))
    changed = [deltas.values[0], deltas.values[1] + np.eye(24, 40)]
    factors = (deltas.factors[0], None) if mixed else (None, None)
    way = method("iso_c")
    merged = way.combine(
        replace(deltas, values=changed, factors=factors), parse_params(way, {}), None
    )
    expected = way.combine(replace(deltas, values=changed, factors=()), parse_params(way, {}), None)
    np.testing.assert_array_equal(merged, expected)


@pytest.mark.parametrize("keep", [1.0, 0.5])
def test_adapters_merge_like_the_models_that_they_make(tmp_path: Path, keep: float) -> None:
    """Softened changes are no products of the factors any more."""
    source = np.random.default_rng(0)
    weight = source.normal(size=(16, 24)).astype(np.float32)
    write_base(tmp_path / "base", {"q.weight": weight})
    base, alone = open_checkpoint(tmp_path / "base"), method("task_arithmetic")
    experts: dict[str, list[Expert]] = {"lora": [], "full": []}
    for name in "ab":
        a, b = source.normal(size=(2, 24)), source.normal(size=(16, 2))
        factors = {"q.lora_A.weight": a, "q.lora_B.weight": b}
        save_adapter(tmp_path / name, {k: v.astype(np.float32) for k, v in factors.items()}, r=2)
        adapter = Expert(open_checkpoint(tmp_path / name), sha=name)
        plan = MergePlan(base, (adapter,), alone, parse_params(alone, {}))
        full = merge(plan, tmp_path / f"full-{name}")
        experts["lora"].append(replace(adapter, keep=keep))
        experts["full"].append(replace(adapter, checkpoint=full, keep=keep))
    way = method("tsv")
    merged = [
        merge(MergePlan(base, tuple(parts), way, parse_params(way, {})), tmp_path / kind).read(
            "q.weight"
        )
        for kind, parts in experts.items()
    ]
    np.testing.assert_allclose(merged[0], merged[1], atol=1e-4)
    assert not np.allclose(merged[0], weight, atol=0.1)
