"""Sums of squares of a task vector, and from them its Euclidean norms, whole and by layer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from hubmerge.cores import core_count, in_order
from hubmerge.weights.array_blocks import blocks
from hubmerge.weights.dtypes import Array
from hubmerge.weights.layer_names import part_of_rest, split_at_layer
from hubmerge.weights.task_vector import TaskVector


def tensor_squares(vector: TaskVector) -> dict[str, float]:
    """The sum of squares of expert - base by tensor; a few tensors at a time are in memory.

    Raises CheckpointError as `TaskVector.delta` does.
    """
    names, threads = [name for name in vector.names() if not vector.keeps(name)], core_count()
    with ThreadPoolExecutor(threads, thread_name_prefix="norms") as pool:
        return dict(in_order(pool, lambda name: square_sum(vector.delta(name)), names, threads))


def norms_by_layer(squares: Mapping[str, float]) -> dict[str, float]:
    """The norm of each layer that changed, from the sums of squares by tensor."""
    by_layer: dict[str, list[float]] = {}
    for name, square in squares.items():
        by_layer.setdefault(layer_name(name), []).append(square)
    return {layer: norm(values) for layer, values in sorted(by_layer.items()) if any(values)}


def layer_name(tensor: str) -> str:
    """model.layers.3 for model.layers.3.mlp.up_proj.weight; before or after outside of layers."""
    parts = split_at_layer(tensor)
    return f"{parts[0]}{parts[1]}" if parts else part_of_rest(tensor)


def norm(square_sums: Iterable[float]) -> float:
    """The norm of a vector from the sums of squares of its parts, in any order."""
    return math.sqrt(math.fsum(square_sums))


def square_sum(array: Array) -> float:
    """The sum of squares, in float64; inf or NaN if an entry is not finite."""
    with np.errstate(over="ignore", invalid="ignore"):
        return math.fsum(
            float(np.square(block, dtype=np.float64).sum()) for (block,) in blocks(array)
        )
