"""What a merge will take: bytes to read and write, memory, and seconds on this machine.

Bytes and memory follow from headers. The seconds are those of merging some parts in one thread,
times the number of parts.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from hubmerge.cores import core_count
from hubmerge.merging.part_reader import PartReader, can_stream, part_size
from hubmerge.merging.plan import MergePlan
from hubmerge.merging.softening import Softening
from hubmerge.weights.array_blocks import BLOCK_SIZE
from hubmerge.weights.dtypes import DTYPES, compute_dtype, is_float
from hubmerge.weights.header import TensorInfo

_MEASURED_S = 0.05
_NOT_SOFTENED = Softening()
_START_BYTES = 60_000_000  # interpreter and libraries
_COPIES = 4  # parts or tensors of an expert that are in memory at once


@dataclass(frozen=True)
class MergeEstimate:
    """`read_bytes` counts every pass; `seconds` is None where it cannot be measured beforehand."""

    read_bytes: int
    write_bytes: int
    memory_bytes: int
    seconds: float | None


def estimate(plan: MergePlan, threads: int | None = None) -> MergeEstimate:
    """Estimate a merge that was checked; reads a few parts of its inputs at most."""
    count, index = threads or core_count(), plan.base.index
    models = [plan.base, *(expert.checkpoint for expert in plan.experts)]
    stored = sum(tensor.nbytes for model in models for tensor in model.index.values())
    reads = plan.method.reads(plan.params)
    written = sum(_written_bytes(plan, tensor) for tensor in index.values())
    streams = plan.method.parts(plan.params) != "tensors"
    whole = [name for name in index if not (streams and _streams(plan, name))]
    largest = max((_computed_bytes(plan, name) for name in whole), default=0)
    parts = max((part_size(plan, name) for name in index), default=0) * 8 * count if streams else 0
    memory = _START_BYTES + _COPIES * (len(plan.experts) + 1) * max(parts, largest)
    return MergeEstimate(stored * reads, written, memory, _seconds(plan, reads, count, whole))


def _written_bytes(plan: MergePlan, tensor: TensorInfo) -> int:
    dtype = plan.dtype if plan.dtype and is_float(tensor.dtype) else tensor.dtype
    return tensor.size * DTYPES[dtype].itemsize


def _streams(plan: MergePlan, name: str) -> bool:
    return all(
        _softens_by_parts(plan, number) and can_stream(plan, number, _NOT_SOFTENED, name)
        for number in range(len(plan.experts))
    )


def _softens_by_parts(plan: MergePlan, number: int) -> bool:
    return plan.experts[number].intruders == 1


def _computed_bytes(plan: MergePlan, name: str) -> int:
    tensor = plan.base.index[name]
    return tensor.size * compute_dtype(tensor.dtype).itemsize if is_float(tensor.dtype) else 0


def _seconds(plan: MergePlan, reads: int, threads: int, whole: list[str]) -> float | None:
    """The seconds of all parts, by the time that reading and adding some takes in one thread."""
    floats = [name for name, tensor in plan.base.index.items() if is_float(tensor.dtype)]
    if not floats or set(whole) & set(floats):
        return None
    total = sum(plan.base.index[name].size for name in floats)
    reader, done = PartReader(plan, [_NOT_SOFTENED] * len(plan.experts)), 0
    start = time.perf_counter()
    try:
        for name in sorted(floats, key=lambda name: -plan.base.index[name].size):
            for first in range(0, plan.base.index[name].size, BLOCK_SIZE):
                stop = min(first + BLOCK_SIZE, plan.base.index[name].size)
                with np.errstate(over="ignore", invalid="ignore"):
                    _, deltas = reader.read(name, first, stop)
                    sum(deltas.values[1:], deltas.values[0]).sum()
                done += stop - first
                if time.perf_counter() - start > _MEASURED_S:
                    break
            if time.perf_counter() - start > _MEASURED_S:
                break
    finally:
        reader.close()
    return (time.perf_counter() - start) * total / max(done, 1) * reads / threads
