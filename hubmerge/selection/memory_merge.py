"""Merges in memory: the same bytes that `merge` would write, without writing them.

All methods but averaging are linear in their scale, so the merged change at scale 1 is computed
once for all scales that are tried. Sums are always computed again from the start, in the engine's
order: a sum that is updated in place drifts, and then the measured model is not the merged one.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import numpy as np
import psutil

from hubmerge.cores import core_count, in_order
from hubmerge.errors import CheckpointError
from hubmerge.merging.deltas import Deltas
from hubmerge.merging.registry import Method, parse_params
from hubmerge.merging.softening import Softening, survey_softening
from hubmerge.selection.memory_passes import MemoryPasses
from hubmerge.selection.pool import Candidate, Choice, Pool
from hubmerge.weights.dtypes import DTYPES, Array, cast, compute_dtype, is_float
from hubmerge.weights.task_vector import TaskVector

T = TypeVar("T")
_SHARE = 0.75  # of the memory, for changes; the rest is for merged changes


class MemoryMerger:
    """Merges choices of a pool by one method.

    Changes of experts and merged changes are kept in up to `memory` bytes, by default half of what
    is free; what does not fit is read again. One merged change is always kept.
    """

    def __init__(self, pool: Pool, method: Method, memory: int | None = None) -> None:
        memory = psutil.virtual_memory().available // 2 if memory is None else memory
        self._pool, self.method = pool, method
        self._task_vectors: dict[str, TaskVector] = {}
        self._cache, self._unchanged = ArrayCache(int(_SHARE * memory)), set[tuple[str, str]]()
        self._softenings: dict[tuple[str, float, float], Softening] = {}
        self._directions: OrderedDict[Choice, dict[str, Array]] = OrderedDict()
        base = pool.base_checkpoint
        self._threads = core_count()
        self._names = [name for name, tensor in base.index.items() if is_float(tensor.dtype)]
        size = sum(base.index[n].size * compute_dtype(self._dtype(n)).itemsize for n in self._names)
        self._most_directions = max(int((1 - _SHARE) * memory) // max(size, 1), 1)

    def merged_tensors(self, choice: Choice) -> Iterator[tuple[str, Array]]:
        """Yield name and values of every tensor that the merge changes, in the base's dtype.

        Raises CheckpointError for values that are not finite.
        """
        scale = dict(choice.params).get("scale")
        direction = self.direction(choice)

        def merge(name: str) -> Array:
            change = direction[name]
            return self._add_to_base(name, change if scale is None else scale * change)

        with ThreadPoolExecutor(self._threads, thread_name_prefix="merge") as pool:
            yield from in_order(pool, merge, direction, 2 * self._threads)

    def expert_tensors(self, candidate: Candidate) -> Iterator[tuple[str, Array]]:
        """Yield name and values of every tensor that one expert changes, in the base's dtype."""
        for name in self._names:
            delta = self.delta(candidate, name)
            if delta.any():
                yield name, self._add_to_base(name, delta)

    def norm(self, candidate: Candidate) -> float:
        """Return the Euclidean norm of an expert's task vector."""
        return _norm(self.delta(candidate, name) for name in self._names)

    def merge_norm(self, choice: Choice) -> float:
        """Return the Euclidean norm of the merged change at scale 1."""
        return _norm(self.direction(choice).values())

    def direction(self, choice: Choice) -> Mapping[str, Array]:
        """Return the merged change at scale 1 of every tensor that is changed."""
        key = choice.with_params(scale=1.0) if "scale" in dict(choice.params) else choice
        if key not in self._directions:
            while len(self._directions) >= self._most_directions:
                self._directions.popitem(last=False)
            self._directions[key] = self._compute_direction(key)
        self._directions.move_to_end(key)
        return self._directions[key]

    def delta(self, candidate: Candidate, name: str) -> Array:
        """Return expert - base of one tensor; read-only."""
        key = (candidate.source.key, name)
        if key in self._unchanged:  # caching the zeros of a frozen tower would waste memory
            return np.zeros_like(self._base(name), compute_dtype(self._dtype(name)))
        delta = self._cache.get(key)
        if delta is None:
            delta = self._task_vector(candidate).delta_from(self._base(name), name)
            if not delta.any():
                self._unchanged.add(key)
                return delta
            delta.flags.writeable = False
            self._cache.put(key, delta)
        return delta

    def _add_to_base(self, name: str, change: Array) -> Array:
        dtype = self._dtype(name)
        with np.errstate(over="ignore", invalid="ignore"):
            total = cast(self._base(name), compute_dtype(dtype)) + change
        values = cast(total, DTYPES[dtype])
        if not np.isfinite(values.astype(np.float32, copy=False)).all():
            raise CheckpointError(
                f"A merge has values that are not finite in tensor {name!r}.",
                "One of the steps may have diverged: name a good step of its repository, "
                "owner/name@step64.",
            )
        return values

    def _compute_direction(self, choice: Choice) -> dict[str, Array]:
        params: Any = parse_params(self.method, dict(choice.params))
        parts = self.method.parts(params)
        with ThreadPoolExecutor(self._threads, thread_name_prefix="merge") as pool:
            changed = [
                name
                for name in self._names
                if self.method.is_changed(self._deltas(choice, name), params, None)
            ]
            passes = MemoryPasses(
                changed, partial(self._deltas, choice), parts, pool, self._threads
            )
            with np.errstate(over="ignore", invalid="ignore"):  # checked in `_add_to_base`
                if parts == "tensors":
                    return self._combine_tensors(passes, params)
                return self._combine_parts(passes, params)

    def _combine_tensors(self, passes: MemoryPasses, params: Any) -> dict[str, Array]:
        survey = self.method.survey
        surveyed = survey(lambda: passes(), params) if survey else None
        return {deltas.tensor: self.method.combine(deltas, params, surveyed) for deltas in passes()}

    def _combine_parts(self, passes: MemoryPasses, params: Any) -> dict[str, Array]:
        survey = self.method.survey(passes, params) if self.method.survey else None
        direction: dict[str, Array] = {}
        for name in passes.names:
            values = passes.load(name).values[0]
            direction[name] = np.empty(values.shape, values.dtype)

        def combine(part: Deltas, surveyed: Any = survey) -> None:
            merged = self.method.combine(part, params, surveyed).reshape(-1)
            direction[part.tensor].reshape(-1)[part.start : part.start + merged.size] = merged

        for _ in passes.map(combine):
            pass
        if self.method.settle is not None:
            settled, again = self.method.settle(survey)
            for name, start in again:
                combine(passes.part(name, start), settled)
        return direction

    def _deltas(self, choice: Choice, name: str) -> Deltas:
        """The deltas of a tensor, experts in the order in which the engine sums them."""
        parts = zip(
            self._pool.experts(choice), choice.weights, choice.keep, choice.intruders, strict=True
        )
        merged = (part for part in parts if part[1])  # a weight of 0 leaves an expert out
        ordered = sorted(merged, key=lambda part: (self._pool.content_key(part[0]), part[1]))
        return Deltas(
            tensor=name,
            values=[
                self._soften(name, candidate, keep, out) for candidate, _, keep, out in ordered
            ],
            weights=tuple(weight for _, weight, _, _ in ordered),
            shas=tuple(self._pool.content_key(candidate) for candidate, _, _, _ in ordered),
            base=self._base(name),
        )

    def _soften(self, name: str, candidate: Candidate, keep: float, intruders: float) -> Array:
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

    def _task_vector(self, candidate: Candidate) -> TaskVector:
        key = candidate.source.key
        if key not in self._task_vectors:
            self._task_vectors[key] = self._pool.task_vector(candidate)
        return self._task_vectors[key]

    def _dtype(self, name: str) -> str:
        return self._pool.base_checkpoint.index[name].dtype

    def _base(self, name: str) -> Array:
        key = ("", name)
        array = self._cache.get(key)
        if array is None:
            array = self._pool.base_checkpoint.read(name)
            self._cache.put(key, array)
        return array


def _norm(arrays: Iterable[Array]) -> float:
    return math.sqrt(math.fsum(float(np.square(a, dtype=np.float64).sum()) for a in arrays))


class ArrayCache:
    """Arrays by key, up to `max_bytes`, for several threads; the oldest use is dropped first."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._bytes, self._lock = max_bytes, 0, threading.Lock()
        self._arrays: OrderedDict[tuple[str, str], Array] = OrderedDict()

    def get(self, key: tuple[str, str]) -> Array | None:
        with self._lock:
            if key in self._arrays:
                self._arrays.move_to_end(key)
            return self._arrays.get(key)

    def put(self, key: tuple[str, str], array: Array) -> None:
        with self._lock:
            known = self._arrays.pop(key, None)
            self._bytes += array.nbytes - (0 if known is None else known.nbytes)
            self._arrays[key] = array
            while self._bytes > self._max_bytes and len(self._arrays) > 1:
                self._bytes -= self._arrays.popitem(last=False)[1].nbytes
