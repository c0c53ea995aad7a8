"""The task vectors of a pool in memory, as a merge of any choice takes them."""

from __future__ import annotations

import math

import numpy as np

from hubmerge.merging.deltas import Deltas
from hubmerge.merging.softening import Softening, survey_softening
from hubmerge.selection.array_cache import ArrayCache
from hubmerge.selection.candidate import Candidate
from hubmerge.selection.choice import Choice
from hubmerge.selection.pool import Pool
from hubmerge.weights.dtypes import Array, compute_dtype, is_float
from hubmerge.weights.task_norms import norm, square_sum
from hubmerge.weights.task_vector import TaskVector


class MemoryDeltas:
    """The changes of all candidates of a pool, of which up to `memory` bytes are kept.

    What does not fit is read again. `names` are the tensors that merges can change.
    """

    def __init__(self, pool: Pool, memory: int) -> None:
        self.pool, self._cache = pool, ArrayCache(memory)
        self._unchanged = set[tuple[str, str]]()
        self._task_vectors: dict[str, TaskVector] = {}
        self._softenings: dict[tuple[str, float, float], Softening] = {}
        index = pool.base_checkpoint.index
        self.names = [name for name, tensor in index.items() if is_float(tensor.dtype)]

    def need(self, choice: Choice) -> None:
        """Keep in memory what merges of this choice read, rather than anything else."""
        self._cache.need({"", *(expert.key for expert in self.pool.experts(choice))})

    def delta(self, candidate: Candidate, name: str) -> Array:
        """Return expert - base of one tensor; read-only."""
        key = (candidate.key, name)
        if key in self._unchanged:  # caching the zeros of a frozen tower would waste memory
            return np.zeros_like(self.base(name), compute_dtype(self.dtype(name)))
        delta = self._cache.get(key)
        if delta is None:
            delta = self._task_vector(candidate).delta_from(self.base(name), name)
            if not delta.any():
                self._unchanged.add(key)
                return delta
            delta.flags.writeable = False
            self._cache.put(key, delta)
        return delta

    def norm(self, candidate: Candidate) -> float:
        """Return the norm of an expert's task vector; it is fetched only if no norm is recorded."""
        if candidate.norms is not None:
            return candidate.norms.model
        return norm(square_sum(self.delta(candidate, name)) for name in self.names)

    def dot(self, first: Candidate, second: Candidate) -> float:
        """Return the inner product of two task vectors."""
        return math.fsum(
            float(np.vdot(self.delta(first, name), self.delta(second, name))) for name in self.names
        )

    def of_choice(self, choice: Choice, name: str, with_factors: bool = False) -> Deltas:
        """The deltas of a tensor, experts in the order in which the engine sums them."""
        ordered = self.parts(choice)
        softenings = [self._softening(part[0], *part[2:]) for part in ordered]
        pairs = [(part[0], softening) for part, softening in zip(ordered, softenings, strict=True)]
        return Deltas(
            tensor=name,
            values=[
                softening.soften(name, self.delta(candidate, name))
                for candidate, softening in pairs
            ],
            weights=tuple(weight for _, weight, _, _ in ordered),
            shas=tuple(self.pool.seed_key(candidate) for candidate, _, _, _ in ordered),
            base=self.base(name),
            factors=tuple(
                self._task_vector(candidate).low_rank(name) if softening.keeps(name) else None
                for candidate, softening in pairs
            )
            if with_factors
            else (),
        )

    def parts(self, choice: Choice) -> list[tuple[Candidate, float, float, float]]:
        """Experts with weight, keep and intruders, in the order in which the engine sums them."""
        parts = zip(
            self.pool.experts(choice), choice.weights, choice.keep, choice.intruders, strict=True
        )
        included = (part for part in parts if part[1] != 0)
        return sorted(included, key=lambda part: (self.pool.seed_key(part[0]), part[1]))

    def _softening(self, candidate: Candidate, keep: float, intruders: float) -> Softening:
        if (keep, intruders) == (1.0, 1.0):
            return Softening()
        key = (candidate.key, keep, intruders)
        if key not in self._softenings:
            self._softenings[key] = survey_softening(
                lambda: ((n, self.delta(candidate, n), self.base(n)) for n in self.names),
                keep,
                intruders,
            )
        return self._softenings[key]

    def _task_vector(self, candidate: Candidate) -> TaskVector:
        key = candidate.key
        if key not in self._task_vectors:
            self._task_vectors[key] = self.pool.task_vector(candidate)
        return self._task_vectors[key]

    def dtype(self, name: str) -> str:
        return self.pool.base_checkpoint.index[name].dtype

    def base(self, name: str) -> Array:
        key = ("", name)
        array = self._cache.get(key)
        if array is None:
            array = self.pool.base_checkpoint.read(name)
            self._cache.put(key, array)
        return array
