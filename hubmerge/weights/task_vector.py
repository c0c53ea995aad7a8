"""What training changed: an expert minus its base, one tensor at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hubmerge.errors import CheckpointError
from hubmerge.weights.blocks import blocks
from hubmerge.weights.checkpoint import Checkpoint
from hubmerge.weights.dtypes import Array, cast, compute_dtype, is_float


@dataclass(frozen=True)
class TaskVector:
    """expert - base, tensor by tensor, never whole in memory.

    A full expert must hold every tensor of the base: one that it lacks is an error, since it may be
    lost as well as left alone. (An adapter says which tensors it changes, so there the others will
    be zeros; adapters come in a later version and are refused here.)
    Source: task arithmetic, https://arxiv.org/abs/2212.04089
    """

    base: Checkpoint
    expert: Checkpoint

    def __post_init__(self) -> None:
        for checkpoint in (self.base, self.expert):
            if checkpoint.kind != "full":
                raise CheckpointError(no_lora(checkpoint), LORA_HINT)

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
        ours, theirs = self.base.tensor(name), self.expert.tensor(name)
        if ours.shape != theirs.shape or not (is_float(ours.dtype) and is_float(theirs.dtype)):
            raise CheckpointError(
                f"{theirs.file}: tensor {name!r} is {theirs.dtype} {list(theirs.shape)}, and "
                f"{ours.dtype} {list(ours.shape)} in the base."
            )
        expert, dtype = self.expert.read(name), compute_dtype(ours.dtype)
        if _same_bytes(expert, base):  # also where both are infinite, which would give NaN
            return np.zeros(base.shape, dtype)
        return subtract(expert, base, dtype)


LORA_HINT = "Merge the adapter into its base first (peft: merge_and_unload), and give the result."


def no_lora(checkpoint: Checkpoint) -> str:
    """The sentence for an adapter where full weights are needed."""
    return (
        f"{checkpoint.folder} is a LoRA adapter, and only full checkpoints can be merged yet; "
        "merging adapters comes in a later version."
    )


def subtract(expert: Array, base: Array, dtype: np.dtype[np.floating]) -> Array:
    """expert - base, computed in the wider of `dtype` and the inputs, then rounded to `dtype`.

    It takes the place of the expert's values if they have that dtype: fresh memory costs more time.
    A difference of two finite values that overflows becomes inf, which the caller looks for.
    """
    wide = np.result_type(dtype, *(a.dtype for a in (expert, base) if a.dtype == np.float64))
    delta = expert if expert.dtype == dtype else np.empty(base.shape, dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        for place, theirs, ours in blocks(delta, expert, base):
            np.subtract(cast(theirs, wide), cast(ours, wide), out=place, casting="same_kind")
    return delta


def _same_bytes(one: Array, other: Array) -> bool:
    if one.dtype != other.dtype:
        return False
    raw = blocks(one.reshape(-1).view(np.uint8), other.reshape(-1).view(np.uint8))
    return all(np.array_equal(ours, theirs) for ours, theirs in raw)
