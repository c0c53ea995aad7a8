"""Merges in memory: the same bytes that `merge` would write, without writing them.

All methods but averaging are linear in their scale, so the merged change at scale 1 is computed
once for all scales that are tried. Sums are always computed again from the start, in the engine's
order: a sum that is updated in place drifts, and then the measured model is not the merged one.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import numpy as np
import psutil
from pydantic import BaseModel

from hubmerge.cores import core_count, in_order
from hubmerge.errors import CheckpointError
from hubmerge.merging import kernels
from hubmerge.merging.deltas import DeltaPasses, Deltas
from hubmerge.merging.device import on_device
from hubmerge.merging.registry import Method, parse_params
from hubmerge.merging.settings import for_tensors, restore_settings, with_unrecorded
from hubmerge.selection.candidate import Candidate
from hubmerge.selection.choice import Choice, as_params
from hubmerge.selection.memory_deltas import MemoryDeltas
from hubmerge.selection.memory_passes import MemoryPasses
from hubmerge.selection.pool import Pool
from hubmerge.weights.array_blocks import blocks, scratch
from hubmerge.weights.dtypes import DTYPES, Array, cast, compute_dtype
from hubmerge.weights.task_norms import norm, square_sum

T = TypeVar("T")
_SHARE = 0.75  # of the memory, for changes; the rest is for merged changes
_MOST_DIRECTIONS = 4  # a search that comes back to a direction mostly finds it among these


class MemoryMerger:
    """Merges choices of a pool by one method.

    Changes of experts and merged changes are kept in up to `memory` bytes, by default half of what
    is free; what does not fit is read again, and a merged change that does not fit is computed for
    each use, a few tensors at a time. A `device` of torch computes what it can, see
    `merging/device.py`, with the same bytes.
    """

    def __init__(
        self, pool: Pool, method: Method, memory: int | None = None, device: str | None = None
    ) -> None:
        memory = psutil.virtual_memory().available // 2 if memory is None else memory
        self.method, self._device = method, device
        self.deltas = MemoryDeltas(pool, int(_SHARE * memory))
        self._thresholds: dict[tuple[Hashable, int], np.float32] = {}
        self._directions: OrderedDict[Choice, dict[str, Array]] = OrderedDict()
        self._threads = core_count()
        dtypes = ((name, compute_dtype(self.deltas.dtype(name))) for name in self.deltas.names)
        self._index = pool.base_checkpoint.index
        size = sum(self._index[name].size * dtype.itemsize for name, dtype in dtypes)
        room = int((1 - _SHARE) * memory) // max(size, 1)
        self._most_directions = min(room, _MOST_DIRECTIONS)
        self._changed_names: dict[Choice, list[str]] = {}

    def merged_tensors(self, choice: Choice) -> Iterator[tuple[str, Array]]:
        """Yield name and values of every tensor that the merge changes, in the base's dtype.

        Raises CheckpointError for values that are not finite.
        """
        scale = self._scales(choice)

        def merge(item: tuple[str, Array]) -> Array:
            name, change = item
            return self._add_to_base(name, change, 1.0 if scale is None else scale(name))

        changes = self._changes(choice)
        with ThreadPoolExecutor(self._threads, thread_name_prefix="merge") as pool:
            for (name, _), values in in_order(pool, merge, changes, 2 * self._threads):
                yield name, values

    def expert_tensors(self, candidate: Candidate) -> Iterator[tuple[str, Array]]:
        """Yield name and values of every tensor that one expert changes, in the base's dtype."""
        for name in self.deltas.names:
            delta = self.deltas.delta(candidate, name)
            if delta.any():
                yield name, self._add_to_base(name, delta)

    def merge_norm(self, choice: Choice) -> float:
        """Return the Euclidean norm of the merged change at scale 1."""
        return norm(square_sum(change) for _, change in self._changes(choice))

    def direction(self, choice: Choice) -> Mapping[str, Array]:
        """Return the merged change at scale 1 of every tensor that is changed."""
        key = _at_scale_1(choice)
        if key not in self._directions:
            while len(self._directions) >= max(self._most_directions, 1):
                self._directions.popitem(last=False)
            self._directions[key] = self._compute_direction(key)
        self._directions.move_to_end(key)
        return self._directions[key]

    def _changes(self, choice: Choice) -> Iterator[tuple[str, Array]]:
        """Name and values of the direction, all of which is in memory only if that is allowed."""
        if self._most_directions:
            yield from self.direction(choice).items()
            return
        key = _at_scale_1(choice)
        params: Any = self._params(key)
        with self._passes(key, params) as passes:
            if passes.parts == "tensors":
                yield from self._combined_tensors(passes, params)
            else:
                yield from self._combined_parts(passes, params)

    def _scales(self, choice: Choice) -> Callable[[str], float] | None:
        """Return the scale of a tensor by its name, None for a method without one."""
        values = dict(choice.params)
        if "scale" not in values:
            return None
        if not any(is_of_layers(name) for name in values):
            return lambda name: values["scale"]
        params, settings = restore_settings(self.method, values, ())
        settings = for_tensors(settings, self._index)

        def scale(name: str) -> float:
            of_tensor: Any = settings.params(params, name)
            return float(of_tensor.scale)

        return scale

    def _add_to_base(self, name: str, change: Array, scale: float = 1.0) -> Array:
        """base + scale * change, block by block, so that only the result needs new memory."""
        base, compute = self.deltas.base(name), compute_dtype(self.deltas.dtype(name))
        values, is_finite = np.empty(base.shape, DTYPES[self.deltas.dtype(name)]), True
        with _unchecked():
            for out, change_block, base_block in blocks(values, change, base):
                weights = cast(base_block, compute)
                if kernels.can_add(change_block, weights, out):
                    is_finite &= kernels.add_to_base(change_block, scale, weights, out)
                    continue
                total = out if out.dtype == compute else scratch("merged", out.size, compute)
                np.multiply(change_block, scale, out=total)
                total += weights
                if total is not out:
                    out[:] = total
                is_finite &= bool(np.isfinite(out.astype(np.float32, copy=False)).all())
        if not is_finite:
            raise CheckpointError(
                f"A merge has values that are not finite in tensor {name!r}.",
                "One of the steps may have diverged: name a good step of its repository, "
                "owner/name@step64.",
            )
        return values

    def _compute_direction(self, choice: Choice) -> dict[str, Array]:
        params: Any = self._params(choice)
        with self._passes(choice, params) as passes:
            if passes.parts == "tensors":
                return dict(self._combined_tensors(passes, params))
            return self._combine_parts(passes, params)

    @contextmanager
    def _passes(self, choice: Choice, params: Any) -> Iterator[MemoryPasses]:
        """Passes over the changes of a choice, in the tensors that its merge changes."""
        self.deltas.need(choice)
        if choice not in self._changed_names:
            self._changed_names[choice] = [
                name
                for name in self.deltas.names
                if self.method.is_changed(self.deltas.of_choice(choice, name), params, None)
            ]
        names = self._changed_names[choice]
        size = sum(self._index[name].size for name in names)
        left_out = sum(self._index[name].size for name in self.deltas.names) - size
        experts = tuple((part[0].key, *part[2:]) for part in self.deltas.parts(choice))
        parts = self.method.parts(params)
        load = partial(self.deltas.of_choice, choice, with_factors=parts == "tensors")
        with ThreadPoolExecutor(self._threads, thread_name_prefix="merge") as pool:
            yield MemoryPasses(
                names, load, parts, pool, self._threads, experts, size, left_out, self._thresholds
            )

    def _combined_tensors(self, passes: MemoryPasses, params: Any) -> Iterator[tuple[str, Array]]:
        # Not with `passes` itself, whose parts these methods cannot merge.
        survey = self._survey(lambda: passes(), params)
        for deltas in passes():
            with _unchecked():
                values = self._combine(deltas, params, survey)
            yield deltas.tensor, values

    def _survey(self, passes: DeltaPasses | MemoryPasses, params: Any) -> Any:
        if self.method.survey is None:
            return None
        with _unchecked():
            return self.method.survey(passes, params)

    def _combine_parts(self, passes: MemoryPasses, params: Any) -> dict[str, Array]:
        survey = self._survey(passes, params)
        direction = {name: self._empty_change(name) for name in passes.names}

        def combine(part: Deltas, surveyed: Any = survey) -> None:
            self._combine_into(direction[part.tensor], part, params, surveyed)

        for _ in passes.map(combine):
            pass
        if self.method.settle is not None:
            settled, again = self.method.settle(survey)
            for name, start in again:
                combine(passes.part(name, start), settled)
        return direction

    def _combined_parts(self, passes: MemoryPasses, params: Any) -> Iterator[tuple[str, Array]]:
        """Name and values as by `_combine_parts`, one tensor after another.

        A method that settles needs a pass before; with its final survey every part is final.
        """
        survey = self._survey(passes, params)
        if self.method.settle is not None:
            for _ in passes.map(lambda part: self._count(part, params, survey)):
                pass
            survey, _ = self.method.settle(survey)
        for name in passes.names:
            change = self._empty_change(name)

            def combine(part: Deltas, change: Array = change, surveyed: Any = survey) -> None:
                self._combine_into(change, part, params, surveyed)

            for _ in dataclasses.replace(passes, names=[name]).map(combine):
                pass
            yield name, change

    def _count(self, part: Deltas, params: Any, survey: Any) -> None:
        """Merge a part only for what the survey counts meanwhile."""
        self._combine(part, params, survey)

    def _combine(self, deltas: Deltas, params: Any, survey: Any) -> Array:
        chosen = self.method
        if self._device is not None:
            chosen = on_device(chosen, params, self._device)
        return chosen.combine(deltas, params, survey)

    def _combine_into(self, change: Array, part: Deltas, params: Any, survey: Any) -> None:
        with _unchecked():
            merged = self._combine(part, params, survey).reshape(-1)
        change.reshape(-1)[part.start : part.start + merged.size] = merged

    def _empty_change(self, name: str) -> Array:
        tensor = self._index[name]
        return np.empty(tensor.shape, compute_dtype(tensor.dtype))

    def _params(self, choice: Choice) -> BaseModel:
        return parse_params(self.method, with_unrecorded(self.method, dict(choice.params)))


def is_of_layers(param: str) -> bool:
    """Return whether a parameter is for some layers: `scale[@0:12]`."""
    return "[" in param


def _at_scale_1(choice: Choice) -> Choice:
    """Return the choice whose direction this one has: only scales differ between layers."""
    params = {name: value for name, value in choice.params if not is_of_layers(name)}
    plain = dataclasses.replace(choice, params=as_params(params))
    return plain.with_params(scale=1.0) if "scale" in params else plain


def _unchecked() -> np.errstate:
    """No warnings of values that are not finite: `_add_to_base` checks the result."""
    return np.errstate(over="ignore", invalid="ignore")
