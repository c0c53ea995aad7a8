"""Task vectors: an expert minus its base, one tensor at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hubmerge.errors import CheckpointError
from hubmerge.weights.adapter import Adapter
from hubmerge.weights.adapter_match import open_adapter
from hubmerge.weights.checkpoint import Checkpoint
from hubmerge.weights.difference import difference, same_bytes
from hubmerge.weights.dtypes import Array, compute_dtype, is_float
from hubmerge.weights.full_match import FullMatch, match_full
from hubmerge.weights.lora import LowRankMatrix
from hubmerge.weights.match_options import DEFAULT_OPTIONS, MatchOptions

FULL_BASE_HINT = "Name its base with --base, and the adapter itself as an expert."
SINGLE_EXPERT_HINT = "Name one of its experts: each folder in its experts/ is a plain adapter."


@dataclass(frozen=True)
class TaskVector:
    """expert - base, computed tensor by tensor, never completely in memory.

    A full expert must have every tensor of the base, under any of the names that `full_match`
    knows, or be one part of it: a missing tensor is an error, since it may have been lost. An
    adapter lists the tensors that it changes, so the others are zeros. A mixture of experts is
    rejected: its change depends on the input.
    Source: task arithmetic, https://arxiv.org/abs/2212.04089
    """

    base: Checkpoint
    expert: Checkpoint
    options: MatchOptions = DEFAULT_OPTIONS

    def __post_init__(self) -> None:
        if self.base.kind != "full":
            raise CheckpointError(not_a_base(self.base), FULL_BASE_HINT)
        if self.expert.is_moe:
            raise CheckpointError(not_an_expert(str(self.expert.folder)), SINGLE_EXPERT_HINT)

    @cached_property
    def adapter(self) -> Adapter | None:
        """The expert as an adapter, None for a full one; raises CheckpointError if it misfits."""
        if self.expert.kind != "lora":
            return None
        return open_adapter(self.base, self.expert, self.options)

    @cached_property
    def full(self) -> FullMatch:
        """Which tensor of the base is which of a full expert; its problems are not raised here."""
        return match_full(self.base, self.expert, f"Expert {self.expert.folder}", self.options)

    def names(self) -> tuple[str, ...]:
        """The floating-point tensors of the base, in their order on disk."""
        return tuple(name for name, tensor in self.base.index.items() if is_float(tensor.dtype))

    def delta(self, name: str) -> Array:
        """expert - base in the base's shape: float32, or float64 where the base has F64.

        All zeros if both hold the same bytes, even infinities and NaN; otherwise non-finite values
        are kept for the caller to check. Raises CheckpointError if one lacks the tensor, if shapes
        differ, or if one of them is not floating-point.
        """
        return self.delta_from(self.base.read(name), name)

    def delta_from(self, base: Array, name: str) -> Array:
        """`delta` with `base = self.base.read(name)`, which is read once for many experts."""
        if self.adapter is not None:
            return self.adapter.delta_from(base, name)
        ours = self.base.tensor(name)
        if name in self.full.kept:
            return np.zeros(base.shape, compute_dtype(ours.dtype))
        own = self.full.names.get(name, name)
        theirs = self.expert.tensor(own)
        if ours.shape != theirs.shape or not (is_float(ours.dtype) and is_float(theirs.dtype)):
            raise CheckpointError(
                f"{theirs.file}: tensor {name!r} is {theirs.dtype} {list(theirs.shape)}, and "
                f"{ours.dtype} {list(ours.shape)} in the base."
            )
        return difference(self.expert.read(own), base, compute_dtype(ours.dtype))

    def low_rank(self, name: str) -> LowRankMatrix | None:
        """The change to a tensor as a product, if it is one of an adapter; see `Adapter`."""
        return None if self.adapter is None else self.adapter.low_rank(name)

    def keeps(self, name: str) -> bool:
        """Whether the expert certainly does not change a tensor."""
        return name in self.full.kept if self.adapter is None else self.adapter.keeps(name)

    def matches_base(self, name: str) -> bool:
        """Whether an integer tensor, which cannot be merged, is the same in both."""
        base = self.base.read(name)
        if self.adapter is not None:
            return self.adapter.matches_base(base, name)
        if name in self.full.kept:
            return True
        return np.array_equal(base, self.expert.read(self.full.names.get(name, name)))

    def read(self, name: str) -> Array:
        """The values that a full expert has for a tensor of the base, or the base's own."""
        if name in self.full.kept:
            return self.base.read(name)
        return self.expert.read(self.full.names.get(name, name))

    def unequal_copies(self) -> Iterator[tuple[Checkpoint, str, str]]:
        """The tensors of a full expert or its base that are not the copies that they should be.

        Each with its checkpoint and the name of the original.
        """
        if self.expert.kind != "full":
            return
        for checkpoint, copies in (
            (self.expert, self.full.copies),
            (self.base, self.full.base_copies),
        ):
            for copy, original in copies.items():
                if not same_bytes(checkpoint.read(copy), checkpoint.read(original)):
                    yield checkpoint, copy, original


def not_a_base(checkpoint: Checkpoint) -> str:
    """The message for an adapter or a mixture of experts that is used as a base."""
    kind = "a mixture of experts" if checkpoint.is_moe else "an adapter"
    return f"{checkpoint.folder} is {kind}, and a base must be a full model."


def not_an_expert(name: str) -> str:
    """The message for a mixture of experts that is used as an expert."""
    return f"{name} is a mixture of experts, which is not one change of weights."
