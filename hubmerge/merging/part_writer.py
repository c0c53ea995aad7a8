"""Merge by parts into files of the right size; see `part_reader` for how parts are read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from hubmerge.merging import kernels
from hubmerge.merging.deltas import Deltas
from hubmerge.merging.part_reader import Span
from hubmerge.merging.streaming import PartStream, StreamPasses
from hubmerge.merging.tensor_merge import merge_tensor
from hubmerge.progress import ByteProgress, Progress
from hubmerge.weights.array_blocks import scratch
from hubmerge.weights.dtypes import DTYPES, Array, cast, compute_dtype, is_float
from hubmerge.weights.header import TensorInfo
from hubmerge.weights.writer import write_tensor


def merge_by_parts(
    stream: PartStream, targets: Mapping[str, TensorInfo], progress: Progress
) -> None:
    """Merge all tensors of a stream into their targets; raises CheckpointError."""
    plan = stream.plan
    for name, target in targets.items():
        if not is_float(target.dtype):
            write_tensor(target, plan.base.read(name))
    survey = None
    if plan.method.survey is not None:
        with np.errstate(over="ignore", invalid="ignore"):
            survey = plan.method.survey(StreamPasses(stream, progress), plan.params)
    writer = _PartWriter(stream, targets, survey)
    floats = {name: target for name, target in targets.items() if is_float(target.dtype)}
    counted = ByteProgress(progress, "merge", sum(target.nbytes for target in floats.values()))
    writer.write(stream.spans, lambda span: counted.add(_written_bytes(span, floats)))
    if plan.method.settle is not None:
        writer.survey, again = plan.method.settle(survey)
        writer.write([stream.part_span(name, start) for name, start in again])
    writer.write_rest()


def _written_bytes(span: Span, targets: Mapping[str, TensorInfo]) -> int:
    return (span.stop - span.start) * DTYPES[targets[span.name].dtype].itemsize


class _PartWriter:
    """Merges parts and writes them.

    A part that no expert changed keeps every bit of the base, unless another part of its tensor
    changed: then -0.0 becomes what the formula gives, as if the tensor were merged as a whole.
    """

    def __init__(self, stream: PartStream, targets: Mapping[str, TensorInfo], survey: Any) -> None:
        self._stream, self._targets, self.survey = stream, targets, survey
        self._changed: set[str] = set()
        self._kept_zeros: dict[str, list[int]] = {}
        self._not_finite: set[str] = set()

    def write(self, chosen: Sequence[Span], on_span: Callable[[Span], None] | None = None) -> None:
        """Merge and write these spans; raises CheckpointError for values that are not finite."""
        for deltas, state in self._stream.run(self._write_part, chosen, on_span):
            name = deltas.tensor
            if state == "kept zeros":
                self._kept_zeros.setdefault(name, []).append(deltas.start)
            elif state != "kept":
                self._changed.add(name)
            if state == "not finite":
                self._not_finite.add(name)
                if not self._stream.plan.allow_nonfinite:
                    self._write_tensor(name)

    def write_rest(self) -> None:
        """Merge what depends on a whole tensor: values that are not finite, and zeros.

        Parts whose -0.0 were kept are merged again if their tensor changed.
        """
        for name in sorted(self._not_finite):
            self._write_tensor(name)
        again = [
            self._stream.part_span(name, start)
            for name in self._changed & self._kept_zeros.keys() - self._not_finite
            for start in self._kept_zeros[name]
        ]
        self._stream.run_all(self._write_merged, again)

    def _write_tensor(self, name: str) -> None:
        """Merge a tensor as a whole; raises CheckpointError for values that are not finite."""
        plan, target = self._stream.plan, self._targets[name]
        values = merge_tensor(plan, name, target, self._stream.softenings, self.survey)
        write_tensor(target, values)

    def _write_part(self, base: Array, deltas: Deltas) -> tuple[Deltas, str]:
        """Write one part; returns where it is, and what happened to it."""
        place = dataclasses.replace(deltas, values=[], base=None)  # they are about to be reused
        plan = self._stream.plan
        if plan.method.is_changed(deltas, plan.params, self.survey):
            return place, "changed" if self._write_merged(base, deltas) else "not finite"
        values = cast(base, DTYPES[self._targets[deltas.tensor].dtype])
        if not np.isfinite(values).all():
            return place, "not finite"
        self._stream.files().write(self._targets[deltas.tensor], deltas.start, values)
        return place, "kept zeros" if (np.signbit(base) & (base == 0)).any() else "kept"

    def _write_merged(self, base: Array, deltas: Deltas) -> bool:
        plan, target = self._stream.plan, self._targets[deltas.tensor]
        change = plan.method.combine(deltas, deltas.of_tensor(plan.params), self.survey)
        compute = compute_dtype(plan.base.index[deltas.tensor].dtype)
        weights, dtype = cast(base, compute), DTYPES[target.dtype]
        values = scratch("merged", base.size, dtype)
        if kernels.can_add(change, weights, values):
            is_finite = kernels.add_to_base(change, 1.0, weights, values)
        else:
            values = cast(np.asarray(weights + change.reshape(base.shape)), dtype)
            is_finite = bool(np.isfinite(values).all())
        if is_finite:
            self._stream.files().write(target, deltas.start, values)
        return is_finite
