"""Pseudo early stopping: soften an expert's task vector before any method sees it.

A repository that kept only its last checkpoint has no earlier step to choose, but its change can be
made more like an earlier one: scaled (the expert's weight), trimmed to its largest entries, or with
its intruder dimensions scaled down. Each is computed from the published change, so they can be
combined without affecting one another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hubmerge.merging.ties import threshold_rank
from hubmerge.merging.trim import kth_magnitudes, magnitudes
from hubmerge.weights.dtypes import Array

# The number of top singular vectors that are examined, as in peft's reduce_intruder_dimension. An
# adapter's rank is not used instead: its intruders may be beyond it, and the full model that the
# adapter makes must be softened in the same way.
TOP_VECTORS = 10
# A singular vector whose |cosine| with every one of the base is below this is an intruder.
MAX_COSINE = 0.6

# Each call is one pass over an expert, tensor by tensor as (name, delta, base).
ExpertPasses = Callable[[], Iterable[tuple[str, Array, Array]]]


@dataclass(frozen=True)
class Intruders:
    """The sum of the intruder dimensions of one matrix: left [O, n] @ right [n, I], float64."""

    left: NDArray[np.float64]
    right: NDArray[np.float64]


@dataclass(frozen=True)
class Softening:
    """How one expert's changes are softened; by default not at all.

    Entries below `threshold` become zero. `intruders`, by tensor, are scaled by `factor`; another
    factor does not require finding them again.
    """

    threshold: float = 0.0
    factor: float = 1.0
    intruders: Mapping[str, Intruders] = field(default_factory=dict)

    def needs_whole(self, name: str) -> bool:
        """Whether a tensor can only be softened as a whole, as a matrix."""
        return self.factor != 1 and name in self.intruders

    def keeps(self, name: str) -> bool:
        """Whether it changes nothing in a tensor."""
        return self.threshold <= 0 and not self.needs_whole(name)

    def soften(self, name: str, delta: Array) -> Array:
        """The softened change to a tensor, of its dtype and shape; `delta` is not modified.

        It is the same array if nothing is to be softened.
        """
        softened, intruders = delta, self.intruders.get(name)
        with np.errstate(over="ignore", invalid="ignore"):  # the caller checks for such values
            if intruders is not None and self.factor != 1:
                removed = (1 - self.factor) * (intruders.left @ intruders.right)
                softened = (delta - removed).astype(delta.dtype)
            if self.threshold > 0:
                softened = np.asarray(softened * (magnitudes(delta) >= self.threshold))
        return softened


def survey_softening(passes: ExpertPasses, keep: float, intruders: float) -> Softening:
    """Survey an expert for softening: two passes to trim, one for intruders.

    `keep` (0 < keep <= 1) is the fraction of entries that is kept, the largest over the whole
    model, ranked as in TIES: among the tensors that this expert changed, with all ties at the
    threshold kept. `intruders` (0 to 1) is the factor on intruder dimensions. A value of 1 needs no
    pass.
    """
    threshold = _find_threshold(passes, keep) if keep < 1 else 0.0
    intruders_by_tensor = dict(_intruders_by_tensor(passes)) if intruders < 1 else {}
    return Softening(threshold, intruders, intruders_by_tensor)


def find_intruders(delta: Array, base: Array) -> Intruders | None:
    """The intruder dimensions of base + delta, or None; only of matrices, as they are stored.

    They are those of its TOP_VECTORS left singular vectors whose largest |cosine| with the left
    singular vectors of the base is below MAX_COSINE. Source: https://arxiv.org/abs/2410.21228,
    definition 1; as there, the vectors are of base + delta and not of delta, so they include a part
    of the base, and a change may even get longer without them. Singular values of zero have no
    directions of their own and are ignored on both sides. float64 throughout.
    """
    if delta.ndim != 2 or not delta.any():
        return None
    base_matrix = base.astype(np.float64)
    merged = base_matrix + delta
    if not np.isfinite(merged).all():
        return None
    base_left, _, _ = _nonzero_svd(base_matrix)
    left, sizes, right = _nonzero_svd(merged)
    cosines = np.abs(base_left.T @ left[:, :TOP_VECTORS]).max(axis=0, initial=0)
    indices = np.flatnonzero(cosines < MAX_COSINE)
    return Intruders(left[:, indices] * sizes[indices], right[indices]) if indices.size else None


def _nonzero_svd(matrix: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """U [O, n], S [n] and V^T [n, I] of the non-zero singular values, largest first."""
    left, sizes, right = np.linalg.svd(matrix, full_matrices=False)
    zero = sizes.max(initial=0) * max(matrix.shape) * np.finfo(np.float64).eps
    count = np.count_nonzero(sizes > zero)
    return left[:, :count], sizes[:count], right[:count]


def _intruders_by_tensor(passes: ExpertPasses) -> Iterator[tuple[str, Intruders]]:
    for name, delta, base in passes():
        intruders = find_intruders(delta, base)
        if intruders is not None:
            yield name, intruders


def _find_threshold(passes: ExpertPasses, keep: float) -> float:
    def changed() -> Iterator[list[Array]]:
        return ([delta] for _, delta, _ in passes() if delta.any())

    thresholds = kth_magnitudes(changed, lambda count: threshold_rank(count, keep))
    return float(thresholds[0]) if thresholds else 0.0
