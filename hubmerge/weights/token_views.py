"""Tensors with a row for every token, as views with their rows in the order of another vocabulary.

Shapes: N rows, D features.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod

import numpy as np

from hubmerge.weights.checkpoint import Checkpoint
from hubmerge.weights.dtypes import DTYPES, Array, cast
from hubmerge.weights.header import TensorInfo


@dataclass(frozen=True)
class TokenExpert:
    """An expert with the names of its token tensors.

    `names` are by the base's names; `copies` are other tensors of it by their names, with the names
    that the base has for their originals.
    """

    checkpoint: Checkpoint
    label: str
    names: Mapping[str, str] = field(repr=False)
    copies: Mapping[str, str] = field(default_factory=dict, repr=False)

    def count_rows(self, tensors: Iterable[str]) -> int:
        """The number of rows of its embedding, 0 if it has none; `tensors` are the base's names."""
        own = (self.names[name] for name in tensors if name in self.names)
        return max((self.checkpoint.index[name].shape[0] for name in own), default=0)


def base_view(
    base: Checkpoint,
    experts: Sequence[TokenExpert],
    sources: Sequence[Array],
    tensors: Sequence[str],
    size: int,
    added: Array,
) -> Checkpoint:
    """The base with `size` rows in its token tensors; `added` are the numbers of the new ones [N].

    `sources` are for each expert the row that it has for each row of the result, or -1.
    """
    if not len(added):
        return base
    views = {}
    for name in tensors:
        target = _resized(base.index[name], base.index[name].dtype, size)
        parts = tuple(
            (expert.checkpoint, expert.names[name], source)
            for expert, source in zip(experts, sources, strict=True)
            if name in expert.names
        )
        views[name] = _BaseRows(base, name, target, added, parts)
    return base.with_views({name: (view.target, view.read) for name, view in views.items()})


def expert_view(
    base: Checkpoint, expert: TokenExpert, source: Array, tensors: Sequence[str]
) -> Checkpoint:
    """The expert with its token tensors in the order of the base; `source` as in `base_view`."""
    if len(source) == expert.count_rows(tensors) and np.array_equal(source, np.arange(len(source))):
        return expert.checkpoint
    own_names = {own: name for name, own in expert.names.items() if name in tensors}
    views = {}
    for own, name in {**expert.copies, **own_names}.items():
        ours, theirs = base.index[name], expert.checkpoint.index[own]
        if theirs.shape[1:] != ours.shape[1:]:
            continue  # reported when base and expert are matched
        dtype = _wider_dtype(ours.dtype, theirs.dtype)
        target = _resized(theirs, dtype, len(source))
        view = _ExpertRows(base, name, expert.checkpoint, own, target, source)
        views[own] = (target, view.read)
    return expert.checkpoint.with_views(views)


def _wider_dtype(first: str, second: str) -> str:
    """A dtype that has the values of both, so that rows of the base do not change."""
    if first == second:
        return first
    return "F64" if "F64" in (first, second) else "F32"


def _resized(tensor: TensorInfo, dtype: str, rows: int) -> TensorInfo:
    shape = (rows, *tensor.shape[1:])
    return replace(
        tensor, dtype=dtype, shape=shape, start=0, end=prod(shape) * DTYPES[dtype].itemsize
    )


@dataclass(frozen=True)
class _BaseRows:
    """A tensor of the base [N, ...] with the rows of new tokens: the mean of the experts' rows.

    Where no expert has the row it is the mean of the base's, as when transformers resizes.
    """

    base: Checkpoint
    name: str
    target: TensorInfo
    added: Array
    experts: tuple[tuple[Checkpoint, str, Array], ...]

    def read(self) -> Array:
        old = self.base.read(self.name)
        values = np.zeros(self.target.shape, old.dtype)
        kept = min(len(old), len(values))
        values[:kept] = old[:kept]
        parts = [
            _rows_or_nan(checkpoint.read(own_name), source[self.added])
            for checkpoint, own_name, source in self.experts
        ]
        counts = sum((self._has_row(source) for *_, source in self.experts), self._no_rows())
        # Sorted, so that the order of the experts has no effect on the sum; NaN comes last.
        total = np.nansum(np.sort(np.stack(parts), axis=0), axis=0) if parts else np.zeros(1)
        mean = np.where(counts > 0, total / counts.clip(min=1), old.mean(axis=0, dtype=np.float64))
        values[self.added] = cast(mean, values.dtype)
        return values

    def _has_row(self, source: Array) -> Array:
        present: Array = source[self.added] >= 0
        return present.reshape(-1, *[1] * (len(self.target.shape) - 1)).astype(np.int64)

    def _no_rows(self) -> Array:
        return np.zeros((len(self.added), *[1] * (len(self.target.shape) - 1)), np.int64)


def _rows_or_nan(values: Array, rows: Array) -> Array:
    """These rows as float64; those below 0 are NaN."""
    taken: Array = values[rows.clip(min=0)].astype(np.float64)
    taken[rows < 0] = np.nan
    return taken


@dataclass(frozen=True)
class _ExpertRows:
    """A tensor of an expert [N, ...] in the base's order; the base's rows where it has none."""

    base: Checkpoint
    name: str
    expert: Checkpoint
    own_name: str
    target: TensorInfo
    source: Array

    def read(self) -> Array:
        dtype = DTYPES[self.target.dtype]
        values = cast(self.base.read(self.name), dtype)
        present = self.source >= 0
        values[present] = cast(self.expert.read(self.own_name)[self.source[present]], dtype)
        return values
