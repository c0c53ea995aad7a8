"""Merges in memory: the bytes that `merge` would write, without writing them.

All methods but averaging are linear in their scale, so the merged change at scale 1 is computed
once for all scales that are tried. Sums are always taken anew, in the engine's order: a sum that is
updated in place drifts, and then what was measured is not what is merged.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from hubmerge.errors import CheckpointError
from hubmerge.merging.deltas import Deltas
from hubmerge.merging.registry import Method, parse_params
from hubmerge.merging.softening import Softening, survey_softening
from hubmerge.selection.pool import Candidate, Choice, Pool
from hubmerge.weights.dtypes import DTYPES, Array, cast, compute_dtype, is_float
from hubmerge.weights.task_vector import TaskVector

KEEP_BYTES = 4 << 30
_DIRECTIONS = 4


class Blender:
    """Merges choices of a pool by one method; task vectors are kept while they fit.

    `keep_bytes` bounds what is kept of task vectors; beyond it they are read again.
    """

    def __init__(self, pool: Pool, method: Method, keep_bytes: int = KEEP_BYTES) -> None:
        self._pool, self.method = pool, method
        self._vectors: dict[str, TaskVector] = {}
        self._kept, self._still = Kept(keep_bytes), set[tuple[str, str]]()
        self._softenings: dict[tuple[str, float, float], Softening] = {}
        self._directions: OrderedDict[Choice, dict[str, Array]] = OrderedDict()
        base = pool.base_checkpoint
        self._names = [name for name, tensor in base.index.items() if is_float(tensor.dtype)]

    def merged(self, choice: Choice) -> Iterator[tuple[str, Array]]:
        """Name and values of every tensor that the merge changes, in the base's dtype.

        Raises CheckpointError for values that are not finite.
        """
        scale = dict(choice.params).get("scale")
        for name, change in self.direction(choice).items():
            yield name, self._moved(name, change if scale is None else scale * change)

    def alone(self, candidate: Candidate) -> Iterator[tuple[str, Array]]:
        """Name and values of every tensor that a single expert changes, in the base's dtype."""
        for name in self._names:
            delta = self.delta(candidate, name)
            if delta.any():
                yield name, self._moved(name, delta)

    def norm(self, candidate: Candidate) -> float:
        """How far an expert has moved: the Euclidean length of its task vector."""
        return _length(self.delta(candidate, name) for name in self._names)

    def length(self, choice: Choice) -> float:
        """How far the merge moves at scale 1."""
        return _length(self.direction(choice).values())

    def direction(self, choice: Choice) -> Mapping[str, Array]:
        """The merged change of every tensor that any expert changed, at scale 1."""
        key = choice.setting(scale=1.0) if "scale" in dict(choice.params) else choice
        if key not in self._directions:
            self._directions[key] = self._computed(key)
            if len(self._directions) > _DIRECTIONS:
                self._directions.popitem(last=False)
        self._directions.move_to_end(key)
        return self._directions[key]

    def delta(self, candidate: Candidate, name: str) -> Array:
        """expert - base of one tensor; not to be written to."""
        key = (candidate.source.key, name)
        if key in self._still:  # a frozen tower's zeros are not worth keeping
            return np.zeros_like(self._base(name), compute_dtype(self._dtype(name)))
        found = self._kept.get(key)
        if found is None:
            found = self._vector(candidate).delta_from(self._base(name), name)
            if not found.any():
                self._still.add(key)
                return found
            found.flags.writeable = False
            self._kept.put(key, found)
        return found

    def _moved(self, name: str, change: Array) -> Array:
        dtype = self._dtype(name)
        with np.errstate(over="ignore", invalid="ignore"):
            total = cast(self._base(name), compute_dtype(dtype)) + change
        values = cast(total, DTYPES[dtype])
        if not np.isfinite(values.astype(np.float32, copy=False)).all():
            raise CheckpointError(
                f"A merge has values that are not finite in tensor {name!r}.",
                "One of the steps may have diverged: name its repository with a sound one alone, "
                "owner/name@step64.",
            )
        return values

    def _computed(self, choice: Choice) -> dict[str, Array]:
        params: Any = parse_params(self.method, dict(choice.params))
        survey = self.method.survey
        with np.errstate(over="ignore", invalid="ignore"):  # `_moved` looks for such values
            found = survey(lambda: self._walk(choice), params) if survey else None
            return {
                deltas.tensor: self.method.combine(deltas, params, found)
                for deltas in self._walk(choice)
                if deltas.changed()
            }

    def _walk(self, choice: Choice) -> Iterator[Deltas]:
        """The deltas of every tensor, experts in the order in which the engine sums them."""
        parts = zip(
            self._pool.experts(choice), choice.weights, choice.keep, choice.intruders, strict=True
        )
        ordered = sorted(parts, key=lambda part: (part[0].source.key, part[1]))
        for name in self._names:
            yield Deltas(
                tensor=name,
                values=[self._softened(name, one, keep, out) for one, _, keep, out in ordered],
                weights=tuple(weight for _, weight, _, _ in ordered),
                shas=tuple(candidate.source.key for candidate, _, _, _ in ordered),
            )

    def _softened(self, name: str, candidate: Candidate, keep: float, intruders: float) -> Array:
        delta = self.delta(candidate, name)
        if (keep, intruders) == (1.0, 1.0):
            return delta
        key = (candidate.source.key, keep, intruders)
        if key not in self._softenings:
            self._softenings[key] = survey_softening(
                lambda: ((n, self.delta(candidate, n), self._base(n)) for n in self._names),
                keep,
                intruders,
            )
        return self._softenings[key].soften(name, delta)

    def _vector(self, candidate: Candidate) -> TaskVector:
        sha = candidate.source.key
        if sha not in self._vectors:
            self._vectors[sha] = TaskVector(self._pool.base_checkpoint, self._pool.open(candidate))
        return self._vectors[sha]

    def _dtype(self, name: str) -> str:
        return self._pool.base_checkpoint.index[name].dtype

    def _base(self, name: str) -> Array:
        key = ("", name)
        found = self._kept.get(key)
        if found is None:
            found = self._pool.base_checkpoint.read(name)
            self._kept.put(key, found)
        return found


def _length(arrays: Iterable[Array]) -> float:
    return math.sqrt(math.fsum(float(np.square(a, dtype=np.float64).sum()) for a in arrays))


class Kept:
    """Arrays by key, the least recently asked for let go of when they are too many bytes."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes, self._bytes = most_bytes, 0
        self._arrays: OrderedDict[tuple[str, str], Array] = OrderedDict()

    def get(self, key: tuple[str, str]) -> Array | None:
        if key in self._arrays:
            self._arrays.move_to_end(key)
        return self._arrays.get(key)

    def put(self, key: tuple[str, str], array: Array) -> None:
        self._arrays[key] = array
        self._bytes += array.nbytes
        while self._bytes > self._most_bytes and len(self._arrays) > 1:
            self._bytes -= self._arrays.popitem(last=False)[1].nbytes
