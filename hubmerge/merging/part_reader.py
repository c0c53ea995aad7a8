"""Read the experts' changes part by part: what one thread of a merge does.

Parts of 131,072 entries stay in the processor's cache, so that a merge takes little longer than
reading its inputs, and its memory does not depend on the size of the model. Some changes need the
whole tensor: those of adapters, of tensors that are computed when they are read, and where intruder
dimensions are softened. They are computed once for a tensor, and one thread does all its parts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from hubmerge.merging import kernels
from hubmerge.merging.deltas import Deltas
from hubmerge.merging.plan import MergePlan
from hubmerge.merging.softening import Softening
from hubmerge.merging.tensor_merge import make_deltas
from hubmerge.weights.array_blocks import BLOCK_SIZE, scratch
from hubmerge.weights.difference import subtract
from hubmerge.weights.dtypes import BFLOAT16, Array, cast, compute_dtype, is_float
from hubmerge.weights.header import TensorInfo
from hubmerge.weights.lora import LowRankMatrix
from hubmerge.weights.tensor_ranges import TensorRanges

_TASK_BLOCKS = 16  # blocks that a thread does in one go
_MAX_ITEM_BYTES = 8


@dataclass(frozen=True)
class Span:
    """Entries `start` to `stop` of a tensor, in parts of `step`: one thread's work at a time."""

    name: str
    start: int
    stop: int
    step: int = BLOCK_SIZE

    def blocks(self) -> Iterator[tuple[int, int]]:
        """The first and last entry of each part; a tensor without entries has one empty part."""
        for start in range(self.start, max(self.stop, self.start + 1), self.step):
            yield start, min(start + self.step, self.stop)


def part_size(plan: MergePlan, name: str) -> int:
    """The number of entries in a part of a tensor: whole rows, if the method needs them."""
    row = row_length(plan, name)
    return max(BLOCK_SIZE // row, 1) * row if row else BLOCK_SIZE


def row_length(plan: MergePlan, name: str) -> int | None:
    """The length of a tensor's last axis, if the method merges rows; None if any entries."""
    if plan.method.parts(plan.params) != "rows":
        return None
    shape = plan.base.index[name].shape
    return max(shape[-1], 1) if shape else 1


def spans(plan: MergePlan, softenings: Sequence[Softening]) -> list[Span]:
    """All floating-point tensors of the base, in order, cut where threads can share a tensor."""
    found = []
    for name, tensor in plan.base.index.items():
        if not is_float(tensor.dtype):
            continue
        part = part_size(plan, name)
        step = part * _TASK_BLOCKS
        if name in plan.base.views or not all(
            can_stream(plan, number, softenings[number], name)
            for number in range(len(plan.experts))
        ):
            step = max(tensor.size, 1)
        found += [
            Span(name, start, min(start + step, tensor.size), part)
            for start in range(0, max(tensor.size, 1), step)
        ]
    return found


def can_stream(plan: MergePlan, number: int, softening: Softening, name: str) -> bool:
    """Whether parts of an expert's change to a tensor can be computed from parts of files."""
    vector = plan.vectors[number]
    if softening.needs_whole(name) or name in vector.base.views:
        return False
    if vector.adapter is not None:
        return vector.adapter.keeps(name) or vector.adapter.is_low_rank(name)
    own = vector.full.names.get(name, name)
    return own not in vector.expert.views


@dataclass(frozen=True)
class _Source:
    """Where an expert's change to a tensor comes from, with what softens it if anything does.

    A tensor on disk, a product of an adapter, or nothing where the base's values are kept. Else
    the change is computed as a whole.
    """

    tensor: TensorInfo | None = None
    matrix: LowRankMatrix | None = None
    name: str = ""
    softening: Softening | None = None
    is_kept: bool = False


class PartReader:
    """Reads parts of base and experts, for one thread. A part is valid until the next is read.

    `files` are the open files of the thread.
    """

    def __init__(self, plan: MergePlan, softenings: Sequence[Softening]) -> None:
        self._plan, self._softenings = plan, softenings
        self.files = TensorRanges()
        sizes = [part_size(plan, name) for name in plan.base.index]
        size = max(BLOCK_SIZE, *sizes) * _MAX_ITEM_BYTES
        self._base_bytes = np.empty(size, np.uint8)
        self._expert_bytes = [np.empty(size, np.uint8) for _ in plan.experts]
        self._sources: tuple[str, list[_Source]] = ("", [])
        self._whole: tuple[str, Array, list[Array | None]] | None = None

    def read(self, name: str, start: int, stop: int) -> tuple[Array, Deltas]:
        """The base's entries of a part, in its dtype, and the changes to them."""
        if self._sources[0] != name:
            self._sources = name, self._find_sources(name)
        base = self._read_base(name, start, stop)
        dtype = compute_dtype(self._plan.base.index[name].dtype)
        start_values = cast(base, dtype)
        values: list[Array] = []
        weights: dict[int, Array] = {}  # by expert
        for number, source in enumerate(self._sources[1]):
            if source.matrix is not None:
                values.append(_low_rank_part(source.matrix, start, stop))
                continue
            if source.tensor is None:
                whole = None if source.is_kept else self._read_whole(name)[1][number]
                values.append(np.zeros(stop - start, dtype) if whole is None else whole[start:stop])
                continue
            buffer = self._expert_bytes[number]
            values.append(self.files.read(source.tensor, source.name, start, stop, buffer))
            if np.float64 in (values[-1].dtype, base.dtype) and dtype != np.float64:
                values[-1] = subtract(values[-1], base, dtype)  # in float64, then rounded
            else:
                weights[number] = values[-1]
        for number, change in zip(
            weights, _subtract_base([*weights.values()], start_values), strict=True
        ):
            values[number] = change
        for number, source in enumerate(self._sources[1]):
            if source.softening is not None:
                values[number] = source.softening.soften(name, values[number])
        row = row_length(self._plan, name)
        if row is not None:
            values = [array.reshape(-1, row) for array in values]
        return base, make_deltas(self._plan, name, values, base, start)

    def _find_sources(self, name: str) -> list[_Source]:
        """Where the changes of each expert to a tensor come from."""
        found = []
        for number, (vector, softening) in enumerate(
            zip(self._plan.vectors, self._softenings, strict=True)
        ):
            if not can_stream(self._plan, number, softening, name):
                found.append(_Source())
            elif vector.keeps(name):
                found.append(_Source(is_kept=True))
            else:
                softens = softening if softening.threshold > 0 else None
                if vector.adapter is not None:
                    matrix = vector.adapter.low_rank(name)
                    found.append(_Source(matrix=matrix, softening=softens))
                    continue
                own = vector.full.names.get(name, name)
                found.append(_Source(vector.expert.tensor(own), name=own, softening=softens))
        return found

    def close(self) -> None:
        self.files.close()

    def _read_base(self, name: str, start: int, stop: int) -> Array:
        checkpoint = self._plan.base
        if name in checkpoint.views:
            return self._read_whole(name)[0][start:stop]
        return self.files.read(checkpoint.index[name], name, start, stop, self._base_bytes)

    def _read_whole(self, name: str) -> tuple[Array, list[Array | None]]:
        """The base's tensor, and the changes of those experts whose parts cannot be read."""
        if self._whole is None or self._whole[0] != name:
            self._whole = None  # free its memory first
            plan = self._plan
            base = plan.base.read(name)
            deltas = [
                None
                if can_stream(plan, number, softening, name)
                else softening.soften(name, vector.delta_from(base, name)).reshape(-1)
                for number, (vector, softening) in enumerate(
                    zip(plan.vectors, self._softenings, strict=True)
                )
            ]
            self._whole = name, base.reshape(-1), deltas
        return self._whole[1:]


def _subtract_base(weights: list[Array], base: Array) -> Iterable[Array]:
    """The changes of the weights of experts, in memory that the next part reuses."""
    if weights and kernels.fit(base) and all(array.dtype == BFLOAT16 for array in weights):
        stack = scratch("changes", len(weights) * base.size, base.dtype)
        stack = stack.reshape(len(weights), base.size)
        kernels.subtract_base_bfloat16(weights, base, stack)
        return stack
    changes = [cast(array, base.dtype) for array in weights]  # the same memory if it has the dtype
    if changes and kernels.fit(base, *changes):
        kernels.subtract_base(changes, base)
    else:
        for change in changes:
            np.subtract(change, base, out=change)
    return changes


def _low_rank_part(matrix: LowRankMatrix, start: int, stop: int) -> Array:
    """Entries `start` to `stop` of a product, in a row."""
    columns = matrix.right.shape[1]
    first, last = start // max(columns, 1), -(-stop // max(columns, 1))
    rows = matrix.rows(first, last).reshape(-1)
    return rows[start - first * columns : stop - first * columns]
