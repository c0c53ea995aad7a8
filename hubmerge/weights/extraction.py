"""Extract a LoRA from a full fine-tune: the closest change of low rank, matrix by matrix.

For full checkpoints where adapters are needed. Changes outside the named matrices and beyond the
rank are lost; `KeptShares` reports how much is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hubmerge.errors import CheckpointError, raise_together
from hubmerge.weights.dtypes import is_float
from hubmerge.weights.factorization import factorize
from hubmerge.weights.header import safe_name, summarize_names
from hubmerge.weights.lora_file import LoraFactors
from hubmerge.weights.lora_modules import IN_PROJ, OUT_PROJ, LoraModule
from hubmerge.weights.task_vector import TaskVector


@dataclass(frozen=True)
class KeptShares:
    """How much of a change its factors keep, in squared norms.

    `kept` is the share of everything that changed, and `attainable` the share without a limit on
    the rank. `modules`: path -> the share of its own change that is kept; 1 if it did not change.
    `left_out`: tensor that changed and has no factors -> its share of everything that changed.
    """

    kept: float
    attainable: float
    modules: Mapping[str, float] = field(repr=False)
    left_out: Mapping[str, float] = field(default_factory=dict, repr=False)

    def to_json(self) -> dict[str, Any]:
        """The shares as JSON values, with as many digits as are the same on every machine."""
        return {
            "kept": _round(self.kept),
            "attainable": _round(self.attainable),
            "modules": {path: _round(share) for path, share in self.modules.items()},
            "left_out": {name: _round(share) for name, share in self.left_out.items()},
        }


def _round(share: float) -> float:
    return float(f"{share:.6g}")


@dataclass
class ShareCounter:
    """Adds up squared norms, module by module; `shares` are those of all that was added."""

    _squares: dict[str, tuple[float, float]] = field(default_factory=dict)
    _left_out: dict[str, float] = field(default_factory=dict)

    def add(self, module: LoraModule, squares: float, kept: float) -> None:
        """Count the squared norm of a module's change, and of what its factors keep."""
        self._squares[module.path] = squares, kept

    def leave_out(self, tensor: str, squares: float) -> None:
        """Count a tensor that has no factors."""
        if squares:
            self._left_out[tensor] = squares

    @property
    def total(self) -> float:
        """The squared norm of everything that changed."""
        return self._attainable + sum(self._left_out.values())

    @property
    def _attainable(self) -> float:
        return sum(squares for squares, _ in self._squares.values())

    def shares(self) -> KeptShares:
        """The shares; all is kept if nothing changed."""
        kept = sum(kept for _, kept in self._squares.values())
        return KeptShares(
            _share(kept, self.total),
            _share(self._attainable, self.total),
            {path: _share(kept, squares) for path, (squares, kept) in self._squares.items()},
            {name: _share(squares, self.total) for name, squares in self._left_out.items()},
        )


def _share(part: float, whole: float) -> float:
    return min(part / whole, 1.0) if whole else 1.0


@dataclass(frozen=True)
class Extraction:
    """The factors of each module in float32, where B A approximates its change, and the shares."""

    rank: int
    factors: LoraFactors = field(repr=False)
    shares: KeptShares


def extract(vector: TaskVector, modules: Sequence[LoraModule], rank: int) -> Extraction:
    """The best approximation of rank `rank` to the change of each of these modules.

    Exact up to rounding where the change has no higher rank. The same vector gives the same
    factors. Raises CheckpointError for modules that are no matrices of the base, for half of a
    fused attention, and for changes that are not finite.
    """
    raise_together(CheckpointError, list(_find_problems(vector, modules, rank)))
    by_tensor = {module.tensor: module for module in modules}
    factors, counter = {}, ShareCounter()
    for name in vector.names():
        delta = vector.delta(name).astype(np.float64)
        squares = float(np.vdot(delta, delta))
        if not np.isfinite(squares):
            raise CheckpointError(
                f"The change of {vector.expert.folder} to {safe_name(name)} is not finite."
            )
        module = by_tensor.get(name)
        if module is None:
            counter.leave_out(name, squares)
            continue
        a, b, values = factorize(module.as_matrix(delta), rank)
        factors[module] = a, b
        counter.add(module, squares, float(np.vdot(values, values)))
    return Extraction(rank, factors, counter.shares())


def _find_problems(vector: TaskVector, modules: Sequence[LoraModule], rank: int) -> Iterator[str]:
    index, names = vector.base.index, {module.tensor for module in modules}
    if rank < 1:
        yield f"The rank of an adapter must be at least 1, not {rank}."
    if not names:
        yield "No matrix is named for the adapter to change."
    invalid = [
        name
        for name in names
        if not name.endswith((".weight", IN_PROJ))
        or name not in index
        or len(index[name].shape) != 2
        or not is_float(index[name].dtype)
    ]
    if invalid:
        yield f"{vector.base.folder} has no module with a matrix for {summarize_names(invalid)}."
    halves = {
        name.removesuffix(end)
        for end in (IN_PROJ, OUT_PROJ)
        for name in names
        if name.endswith(end)
    }
    for attention in sorted(halves):
        pair = {attention + IN_PROJ, attention + OUT_PROJ}
        if attention + IN_PROJ in index and not pair <= names:
            name = safe_name(attention)
            yield f"In the attention {name}, in_proj_weight and out_proj must be adapted together."
