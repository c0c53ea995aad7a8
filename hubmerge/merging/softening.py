"""Pseudo early stopping: an expert's task vector softened before any method sees it.

A repository that kept only its last checkpoint has no earlier step to choose, but its change can be
made more like an earlier one: scaled (the expert's weight), trimmed to its largest entries, or with
its intruder dimensions scaled down. Each is told of the change as it was published, so they may be
combined and none moves another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hubmerge.merging.ties import rank
from hubmerge.merging.trim import kth_magnitudes, magnitudes
from hubmerge.weights.dtypes import Array

# Of the singular vectors with the largest singular values so many are looked at, as in peft's
# reduce_intruder_dimension. An adapter's rank is not used: its intruders need not be among so few,
# and the whole model it is merged into must be softened alike.
TOP = 10
# A singular vector that is no closer than this to every one of the base is an intruder.
COSINE = 0.6

# Call it for one walk over an expert, tensor by tensor as (name, delta, base), as often as needed.
Walk = Callable[[], Iterable[tuple[str, Array, Array]]]


@dataclass(frozen=True)
class Intruders:
    """What the intruder dimensions of one matrix add up to: left [O, n] @ right [n, I], float64."""

    left: NDArray[np.float64]
    right: NDArray[np.float64]


@dataclass(frozen=True)
class Softening:
    """How one expert's changes are softened; as it stands, not at all.

    Entries below `threshold` become zero. `factor` is what is left of the `intruders`, which are by
    tensor; with another factor they need not be found again.
    """

    threshold: float = 0.0
    factor: float = 1.0
    intruders: Mapping[str, Intruders] = field(default_factory=dict)

    def soften(self, name: str, delta: Array) -> Array:
        """The softened change to a tensor, of its dtype and shape; `delta` is not written to.

        It is the same array where nothing is to be softened.
        """
        softened, found = delta, self.intruders.get(name)
        with np.errstate(over="ignore", invalid="ignore"):  # the caller looks for such values
            if found is not None and self.factor != 1:
                less = (1 - self.factor) * (found.left @ found.right)
                softened = (delta - less).astype(delta.dtype)
            if self.threshold > 0:
                softened = np.asarray(softened * (magnitudes(delta) >= self.threshold))
        return softened


def survey_softening(walk: Walk, keep: float, intruders: float) -> Softening:
    """Walk over an expert for what softening it must know: twice to trim, once for intruders.

    `keep` (0 < keep <= 1) is the fraction of entries that stay, the largest over the whole model,
    ranked as TIES ranks: among the tensors that this expert changed, all that tie with the last
    kept. `intruders` (0 to 1) is the factor on intruder dimensions. What is 1 costs no walk.
    """
    threshold = _threshold(walk, keep) if keep < 1 else 0.0
    found = dict(_all_intruders(walk)) if intruders < 1 else {}
    return Softening(threshold, intruders, found)


def find_intruders(delta: Array, base: Array) -> Intruders | None:
    """The intruder dimensions of base + delta, None without; only of matrices, as they are stored.

    They are those of its TOP left singular vectors whose largest |cosine| with the left singular
    vectors of the base is below COSINE. Source: https://arxiv.org/abs/2410.21228, definition 1; as
    there, vectors are of base + delta and not of delta, so they hold something of the base too, and
    without them a change may even be longer. Singular values of zero have no directions of their
    own and count on neither side. float64 throughout.
    """
    if delta.ndim != 2 or not delta.any():
        return None
    before = base.astype(np.float64)
    after = before + delta
    if not np.isfinite(after).all():
        return None
    ours, _, _ = _singular(before)
    left, sizes, right = _singular(after)
    cosines = np.abs(ours.T @ left[:, :TOP]).max(axis=0, initial=0)
    found = np.flatnonzero(cosines < COSINE)
    return Intruders(left[:, found] * sizes[found], right[found]) if found.size else None


def _singular(matrix: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """U [O, n], S [n] and V^T [n, I] of the singular values that are not zero, largest first."""
    left, sizes, right = np.linalg.svd(matrix, full_matrices=False)
    zero = sizes.max(initial=0) * max(matrix.shape) * np.finfo(np.float64).eps
    count = np.count_nonzero(sizes > zero)
    return left[:, :count], sizes[:count], right[:count]


def _all_intruders(walk: Walk) -> Iterator[tuple[str, Intruders]]:
    for name, delta, base in walk():
        found = find_intruders(delta, base)
        if found is not None:
            yield name, found


def _threshold(walk: Walk, keep: float) -> float:
    def changed() -> Iterator[list[Array]]:
        return ([delta] for _, delta, _ in walk() if delta.any())

    found = kth_magnitudes(changed, lambda count: rank(count, keep))
    return float(found[0]) if found else 0.0
