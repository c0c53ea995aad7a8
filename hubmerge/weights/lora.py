"""What an adapter changes in one tensor of its base, as the full change and not as factors.

[O, I] is a matrix of O outputs and I inputs, R a rank. `weight` is the base's tensor in its own
dtype; `read` returns a tensor of the adapter as a new array in the dtype of arithmetic (float32, or
float64 where the base has F64), which is also the dtype of the change.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from hubmerge.weights.dtypes import Array, cast

_BLOCK = 8192  # entries
SERIAL = 1 << 18  # multiplications below which OpenBLAS does not start threads
ReadTensor = Callable[[str], Array]


class Change(Protocol):
    """A change to one tensor; its fields name tensors of the adapter."""

    def delta(self, weight: Array, read: ReadTensor) -> Array:
        """expert - base, as a new array."""
        ...


@dataclass(frozen=True)
class LowRankMatrix:
    """The matrix scale * left @ right, of which some rows are computed at a time.

    They are computed in blocks that depend on the matrix alone, so that rows have the same bits
    whichever are asked for. A block is so small that BLAS multiplies it in one thread: several
    threads may compute rows at the same time.
    """

    left: Array
    right: Array
    scale: float

    def rows(self, start: int, stop: int) -> Array:
        """The rows from `start` to `stop`, as a new array."""
        rank, columns = self.right.shape
        step = max(min(_BLOCK // max(columns, 1), SERIAL // max(columns * rank, 1)), 1)
        first = start - start % step
        last = min(stop + -stop % step, len(self.left))
        product = np.empty((last - first, columns), self.left.dtype)
        for row in range(first, last, step):
            until = min(row + step, last)
            np.matmul(self.left[row:until], self.right, out=product[row - first : until - first])
        product *= self.scale
        return product[start - first : stop - first]


@dataclass(frozen=True)
class LowRank:
    """scale * B A with A [R, I] and B [O, R]; transposed where the base stores its inputs first.

    Source: LoRA, https://arxiv.org/abs/2106.09685, section 4.1.
    """

    a: str
    b: str
    scale: float
    inputs_first: bool = False

    def delta(self, weight: Array, read: ReadTensor) -> Array:
        matrix = self.matrix(read)
        return matrix.rows(0, len(matrix.left))

    def matrix(self, read: ReadTensor) -> LowRankMatrix:
        """Its factors as the base stores them: rows by rank, and rank by columns."""
        a, b = read(self.a), read(self.b)
        left, right = (a.T, b.T) if self.inputs_first else (b, a)
        return LowRankMatrix(np.ascontiguousarray(left), np.ascontiguousarray(right), self.scale)


@dataclass(frozen=True)
class Dora:
    """The low-rank change, then the weights of each output scaled to the norm `magnitude` [O].

    Source: DoRA, https://arxiv.org/abs/2402.09353, equation 5.
    """

    product: LowRank
    magnitude: str

    def delta(self, weight: Array, read: ReadTensor) -> Array:
        changed = self.product.delta(weight, read)
        weight = cast(weight, changed.dtype)
        changed += weight
        outputs = "ij,ij->j" if self.product.inputs_first else "ij,ij->i"
        # In float64, as einsum adds the squares one after another; it stores no array of squares.
        lengths = np.sqrt(np.einsum(outputs, changed, changed, dtype=np.float64)).astype(
            changed.dtype
        )
        factor = read(self.magnitude) / lengths
        changed *= factor if self.product.inputs_first else factor[:, None]
        changed -= weight
        return changed


@dataclass(frozen=True)
class Convolution:
    """scale * B A for a convolution [O, I, ...] with A [R, I, ...] and B [O, R, 1, ...].

    Source: peft's lora.Conv2d, without groups.
    """

    a: str
    b: str
    scale: float

    def delta(self, weight: Array, read: ReadTensor) -> Array:
        a, b = read(self.a), read(self.b)
        product: Array = b.reshape(len(b), -1) @ a.reshape(len(a), -1)
        product *= self.scale
        return product.reshape(weight.shape)


@dataclass(frozen=True)
class BiasChange:
    """scale * b, where b is the bias of B, added to the base's bias."""

    bias: str
    scale: float

    def delta(self, weight: Array, read: ReadTensor) -> Array:
        bias = read(self.bias)
        bias *= self.scale
        return bias


@dataclass(frozen=True)
class TokenRows:
    """Rows of an embedding [V, D] replaced by those of `rows` [N, D], by their numbers.

    Source: peft's trainable_token_indices.
    """

    rows: str
    numbers: tuple[int, ...]

    def delta(self, weight: Array, read: ReadTensor) -> Array:
        new = read(self.rows)
        change = np.zeros(weight.shape, new.dtype)
        positions = list(self.numbers)
        change[positions] = new - cast(weight[positions], new.dtype)
        return change


@dataclass(frozen=True)
class Ia3:
    """The weights times a vector along one axis: (IA)^3, https://arxiv.org/abs/2205.05638."""

    vector: str
    axis: int

    def delta(self, weight: Array, read: ReadTensor) -> Array:
        vector = read(self.vector)
        shape = [1] * weight.ndim
        shape[self.axis] = -1
        return np.asarray(cast(weight, vector.dtype) * (vector.reshape(shape) - 1))
