"""Passes over changes in memory give what passes over files give."""

from __future__ import annotations

from collections.abc import Hashable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest

from hubmerge.merging.deltas import Deltas, ParallelPasses
from hubmerge.merging.method import Parts
from hubmerge.selection.memory_passes import MemoryPasses
from hubmerge.weights.array_blocks import BLOCK_SIZE

SHAPES = {"a": (3, BLOCK_SIZE - 1), "b": (), "c": (5, 7), "d": (0, 3)}


def load(name: str) -> Deltas:
    size = int(np.prod(SHAPES[name]))
    values = [np.arange(size, dtype=np.float32).reshape(SHAPES[name]) + k for k in range(2)]
    return Deltas(name, values, (1.0, 1.0), ("x", "y"), base=values[0] * 2)


@pytest.mark.parametrize("parts", ["entries", "rows"])
@pytest.mark.parametrize("threads", [1, 3])
def test_parts_are_in_order_and_complete(parts: Parts, threads: int) -> None:
    with ThreadPoolExecutor(threads) as pool:
        passes = MemoryPasses(list(SHAPES), load, parts, pool, threads)
        assert isinstance(passes, ParallelPasses)
        found = list(passes.map(lambda part: part))
    for name, shape in SHAPES.items():
        mine = [part for part in found if part.tensor == name]
        starts = np.cumsum([0, *(part.values[0].size for part in mine)])
        assert [part.start for part in mine] == starts[:-1].tolist()
        for number, values in enumerate(load(name).values):
            joined = np.concatenate([part.values[number].reshape(-1) for part in mine])
            assert joined.tolist() == values.reshape(-1).tolist()
        if parts == "rows" and shape:
            assert all(part.values[0].shape[1:] == shape[-1:] for part in mine)
        for part in mine:
            assert np.array_equal(part.base_values, 2 * part.values[0].reshape(-1))
    assert [part.tensor for part in found] == sorted(part.tensor for part in found)


def test_a_part_can_be_read_again() -> None:
    with ThreadPoolExecutor(1) as pool:
        passes = MemoryPasses(list(SHAPES), load, "entries", pool, 1)
        part = passes.part("a", BLOCK_SIZE)
        assert (part.start, part.values[0].size) == (BLOCK_SIZE, BLOCK_SIZE)
        assert part.values[0][0] == BLOCK_SIZE
        sampled = list(passes.sample(2048))
    assert 0 < sum(part.values[0].size for part in sampled) <= 4096
    assert {part.tensor for part in sampled} == {"a"}


def test_thresholds_are_those_of_the_whole_model_and_ranked_once() -> None:
    """Also where so many entries are kept that some of those that are left out are among them."""
    draw = np.random.default_rng(5)
    tensors = {name: [draw.normal(size=500).astype(np.float32) for _ in "xyz"] for name in "ab"}
    loads: list[str] = []

    def load_some(columns: list[int], name: str) -> Deltas:
        loads.append(name)
        values = [tensors[name][column] for column in columns]
        return Deltas(name, values, (1.0,) * len(columns), ("",) * len(columns))

    known: dict[tuple[Hashable, int], np.float32] = {}
    with ThreadPoolExecutor(2) as pool:

        def thresholds(columns: list[int], kept: int) -> tuple[np.float32, ...] | None:
            load = partial(load_some, columns)
            passes = MemoryPasses("ab", load, "entries", pool, 2, tuple(columns), 1000, 500, known)
            return passes.thresholds(lambda count: kept * count // 1500, only_changed=False)

        for kept in (1, 300, 1000, 1001, 1500):
            zeros = [np.zeros(500, np.float32)] * 3
            whole = map(np.concatenate, zip(*tensors.values(), zeros, strict=True))
            expected = tuple(np.sort(np.abs(column))[-kept] for column in whole)
            assert thresholds([0, 1], kept) == expected[:2]
            assert thresholds([2, 1], kept) == (expected[2], expected[1])
            loads.clear()
            assert thresholds([2, 0, 1], kept) == (expected[2], expected[0], expected[1])
            assert not loads
