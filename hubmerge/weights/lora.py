"""What an adapter does to one tensor of its base, as arrays: the whole change, never its factors.

[O, I] is a matrix of O outputs and I inputs, R a rank. `weight` is the base's tensor in its own
dtype; `read` gives a tensor of the adapter, anew each time, in the dtype of arithmetic (float32, or
float64 where the base has F64), which is also that of the change.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from hubmerge.weights.dtypes import Array, cast

Read = Callable[[str], Array]


class Change(Protocol):
    """A change to one tensor; the names are tensors of the adapter."""

    def delta(self, weight: Array, read: Read) -> Array:
        """expert - base, an array of our own."""
        ...


@dataclass(frozen=True)
class LowRank:
    """scale * B A with A [R, I] and B [O, R]; transposed where the base stores its inputs first.

    Source: LoRA, https://arxiv.org/abs/2106.09685, section 4.1.
    """

    a: str
    b: str
    scale: float
    inputs_first: bool = False

    def delta(self, weight: Array, read: Read) -> Array:
        a, b = read(self.a), read(self.b)
        product: Array = a.T @ b.T if self.inputs_first else b @ a
        product *= self.scale
        return product


@dataclass(frozen=True)
class Dora:
    """The low-rank change, and then each output's weights stretched to the length `magnitude` [O].

    Source: DoRA, https://arxiv.org/abs/2402.09353, equation 5.
    """

    product: LowRank
    magnitude: str

    def delta(self, weight: Array, read: Read) -> Array:
        moved = self.product.delta(weight, read)
        weight = cast(weight, moved.dtype)
        moved += weight
        outputs = "ij,ij->j" if self.product.inputs_first else "ij,ij->i"
        # In float64, for squares are summed one after another; and without room for the squares.
        lengths = np.sqrt(np.einsum(outputs, moved, moved, dtype=np.float64)).astype(moved.dtype)
        stretch = read(self.magnitude) / lengths
        moved *= stretch if self.product.inputs_first else stretch[:, None]
        moved -= weight
        return moved


@dataclass(frozen=True)
class Shift:
    """scale * b, the bias of B, added to the bias of the base."""

    bias: str
    scale: float

    def delta(self, weight: Array, read: Read) -> Array:
        shift = read(self.bias)
        shift *= self.scale
        return shift


@dataclass(frozen=True)
class Stretch:
    """The weights times a vector along one axis. Source: (IA)^3, https://arxiv.org/abs/2205.05638."""

    vector: str
    axis: int

    def delta(self, weight: Array, read: Read) -> Array:
        vector = read(self.vector)
        shape = [1] * weight.ndim
        shape[self.axis] = -1
        return np.asarray(cast(weight, vector.dtype) * (vector.reshape(shape) - 1))
