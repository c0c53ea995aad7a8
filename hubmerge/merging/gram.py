"""Inner products of the base and the experts' changes: what methods on spheres need of a tensor.

Their formulas only use lengths and angles of whole tensors, and their results are weighted sums of
base and changes. So one pass over the model finds all factors, and memory does not depend on the
size of a tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hubmerge.merging.deltas import DeltaPasses, Deltas, map_parts
from hubmerge.weights.dtypes import Array

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Factors:
    """A merged change: `base` times the base plus the sum of `changes` times the experts' changes.

    Each is a number, or an array with one for each row [rows, 1].
    """

    base: Any
    changes: tuple[Any, ...]

    def apply(self, deltas: Deltas) -> Array:
        """The merged change, in the dtype of the deltas."""
        dtype = deltas.values[0].dtype
        total = np.zeros_like(deltas.values[0])
        for delta, factor in zip(deltas.values, self.changes, strict=True):
            total += delta * np.asarray(factor, dtype)
        if np.any(self.base):
            total += deltas.base_values.reshape(total.shape) * np.asarray(self.base, dtype)
        return total


@dataclass(frozen=True)
class GramSurvey:
    """By tensor, the inner products [1 + experts, 1 + experts] of base and changes, in float64.

    The factors that follow from them are computed once for a tensor.
    """

    products: dict[str, Float64]
    _factors: dict[str, Factors] = field(default_factory=dict, compare=False)

    def is_changed(self, tensor: str) -> bool:
        """Whether any expert changed the tensor; NaN counts as a change."""
        return bool(np.diagonal(self.products[tensor])[1:].any())

    def factors(self, tensor: str, compute: Callable[[Float64], Factors]) -> Factors:
        if tensor not in self._factors:
            self._factors[tensor] = compute(self.products[tensor])
        return self._factors[tensor]


def survey_gram(passes: DeltaPasses, params: Any) -> GramSurvey:
    """The inner products of every tensor, in one pass."""
    products: dict[str, Float64] = {}
    for name, part in map_parts(passes, lambda deltas: (deltas.tensor, inner_products(deltas))):
        products[name] = products[name] + part if name in products else part
    return GramSurvey(products)


def inner_products(deltas: Deltas) -> Float64:
    """[1 + experts, 1 + experts] of the base and the changes."""
    values = (deltas.base_values, *deltas.values)
    stack = np.stack([array.reshape(-1).astype(np.float64) for array in values])
    return np.asarray(stack @ stack.T)


def row_products(deltas: Deltas) -> Float64:
    """Inner products of rows [rows, 1 + experts, 1 + experts]."""
    values = (deltas.base_values.reshape(deltas.values[0].shape), *deltas.values)
    rows = [np.atleast_1d(array) for array in values]
    stack = np.stack([array.reshape(-1, array.shape[-1]).astype(np.float64) for array in rows], 1)
    return np.asarray(stack @ stack.swapaxes(1, 2))


def of_models(products: Float64) -> Float64:
    """Inner products of the experts' own weights, base plus change: [..., experts, experts]."""
    base, cross, changes = products[..., :1, :1], products[..., :1, 1:], products[..., 1:, 1:]
    return np.asarray(base + cross + cross.swapaxes(-1, -2) + changes)


def of_changes(products: Float64) -> Float64:
    """Inner products of the changes: [..., experts, experts]."""
    return products[..., 1:, 1:]


def survey_gram_of_tensors(passes: DeltaPasses, params: Any) -> GramSurvey | None:
    """The same, or None if each row has factors of its own."""
    return survey_gram(passes, params) if params.per == "tensor" else None
