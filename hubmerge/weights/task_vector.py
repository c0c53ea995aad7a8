"""What training changed: an expert minus its base, one tensor at a time."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hubmerge.errors import CheckpointError
from hubmerge.weights.adapter import Adapter
from hubmerge.weights.adapter_match import open_adapter
from hubmerge.weights.checkpoint import Checkpoint
from hubmerge.weights.difference import difference
from hubmerge.weights.dtypes import Array, compute_dtype, is_float

WHOLE_BASE = "Name its base with --base, and the adapter itself as an expert."
ITS_EXPERTS = "Name one of its experts: each folder in its experts/ is a plain adapter."


@dataclass(frozen=True)
class TaskVector:
    """expert - base, tensor by tensor, never whole in memory.

    A full expert must hold every tensor of the base: one that it lacks is an error, since it may be
    lost as well as left alone. An adapter says which tensors it changes, so the others are zeros.
    A mixture is refused: what it adds hangs on what is put in.
    Source: task arithmetic, https://arxiv.org/abs/2212.04089
    """

    base: Checkpoint
    expert: Checkpoint

    def __post_init__(self) -> None:
        if self.base.kind != "full":
            raise CheckpointError(no_base(self.base), WHOLE_BASE)
        if self.expert.is_moe:
            raise CheckpointError(no_expert(self.expert), ITS_EXPERTS)

    @cached_property
    def adapter(self) -> Adapter | None:
        """The expert as an adapter, None for a full one; raises CheckpointError if it misfits."""
        return open_adapter(self.base, self.expert) if self.expert.kind == "lora" else None

    def names(self) -> tuple[str, ...]:
        """The floating-point tensors of the base, in the order they lie on disk."""
        return tuple(name for name, tensor in self.base.index.items() if is_float(tensor.dtype))

    def delta(self, name: str) -> Array:
        """expert - base in the base's shape: float32, or float64 where the base has F64.

        Zeros where both hold the same bytes, also of infinities and NaN; elsewhere what is not a
        number is kept, for the caller to look for. Raises CheckpointError if either lacks the
        tensor, or shapes or kinds of number differ.
        """
        return self.delta_from(self.base.read(name), name)

    def delta_from(self, base: Array, name: str) -> Array:
        """`delta`, given what `base.read(name)` gave: it is read once for many experts."""
        if self.adapter is not None:
            return self.adapter.delta_from(base, name)
        ours, theirs = self.base.tensor(name), self.expert.tensor(name)
        if ours.shape != theirs.shape or not (is_float(ours.dtype) and is_float(theirs.dtype)):
            raise CheckpointError(
                f"{theirs.file}: tensor {name!r} is {theirs.dtype} {list(theirs.shape)}, and "
                f"{ours.dtype} {list(ours.shape)} in the base."
            )
        return difference(self.expert.read(name), base, compute_dtype(ours.dtype))

    def agrees(self, name: str) -> bool:
        """Whether a tensor of whole numbers, which cannot be merged, is the same in both."""
        base = self.base.read(name)
        if self.adapter is not None:
            return self.adapter.agrees(base, name)
        return np.array_equal(base, self.expert.read(name))


def no_base(checkpoint: Checkpoint) -> str:
    """The sentence for an adapter or a mixture where a whole model is needed."""
    said = "a mixture" if checkpoint.is_moe else "an adapter"
    return f"{checkpoint.folder} is {said}, and a base is a whole model."


def no_expert(checkpoint: Checkpoint) -> str:
    """The sentence for a mixture where a single expert is needed."""
    return f"{checkpoint.folder} is a mixture, which no change of weights can stand for."
