"""An adapter matched with its base: which tensors of the base it changes, and by how much."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from hubmerge.weights.checkpoint import Checkpoint
from hubmerge.weights.difference import difference, same_bytes
from hubmerge.weights.dtypes import Array, cast, compute_dtype
from hubmerge.weights.lora import Change, LowRank, LowRankMatrix

# The modules that hold a token embedding or the output head that may be tied to it.
_EMBEDDING_MODULES = {
    "shared", "embed_tokens", "wte", "word_embeddings", "lm_head", "embed_in", "embed_out",
    "decoder",
}  # fmt: skip
_HEADS = {"lm_head", "embed_out", "proj_out"}


@dataclass(frozen=True)
class Adapter:
    """Changes by the name of the base's tensor.

    `replacements` maps a tensor of the base to the adapter's tensor that replaces it. Where a
    tensor has both, the change applies to the replacement. `knows_tie` is true if the base's
    configuration says whether its head is tied to its embedding. `head` are the tensors of a task's
    head that are not merged, by their plain names.
    """

    base: Checkpoint
    checkpoint: Checkpoint
    changes: Mapping[str, Change] = field(repr=False)
    replacements: Mapping[str, str] = field(repr=False)
    knows_tie: bool = False
    head: Mapping[str, str] = field(default_factory=dict, repr=False)

    def delta_from(self, base: Array, name: str) -> Array:
        """expert - base of one tensor, where `base` is `self.base.read(name)`.

        float32, or float64 where the base has F64; exactly zero where the adapter changes nothing.
        """
        dtype = compute_dtype(self.base.tensor(name).dtype)
        change = self.changes.get(name) or self._tied_change(base, name)
        replacement = (
            self.checkpoint.read(self.replacements[name]) if name in self.replacements else None
        )
        with np.errstate(all="ignore"):  # the caller checks for non-finite values
            if change is None:
                delta = np.zeros(base.shape, dtype)
            else:
                start = base if replacement is None else replacement
                delta = change.delta(start, lambda tensor: self._read(tensor, dtype))
            return delta if replacement is None else delta + difference(replacement, base, dtype)

    def keeps(self, name: str) -> bool:
        """Whether it certainly does not change a tensor.

        An embedding may be a copy of another one, which it changes.
        """
        if name in self.changes or name in self.replacements:
            return False
        return not is_embedding(name) or not any(map(is_embedding, self.changes))

    def low_rank(self, name: str) -> LowRankMatrix | None:
        """Its change to a tensor, if that is nothing but a product of two factors."""
        change = self.changes.get(name)
        if not isinstance(change, LowRank) or name in self.replacements:
            return None
        dtype = compute_dtype(self.base.tensor(name).dtype)
        return change.matrix(lambda tensor: self._read(tensor, dtype))

    def is_low_rank(self, name: str) -> bool:
        """Whether `low_rank` gives it; nothing is read."""
        return name not in self.replacements and isinstance(self.changes.get(name), LowRank)

    def matches_base(self, base: Array, name: str) -> bool:
        """Whether a tensor that cannot be merged has the same values in adapter and base."""
        replacement = self.replacements.get(name)
        return replacement is None or np.array_equal(base, self.checkpoint.read(replacement))

    def _read(self, tensor: str, dtype: np.dtype[np.floating]) -> Array:
        return cast(self.checkpoint.read(tensor), dtype)

    def _tied_change(self, base: Array, name: str) -> Change | None:
        """The change of the tensor that this one is a copy of, if there is one.

        A model that ties its head to its embedding has one matrix for both, which peft changes in
        place when it merges. Some files store it twice. If the base's configuration is known, its
        head is separate, or was separated by `weights.ties`.
        """
        if not is_embedding(name) or name in self.replacements:
            return None
        info = self.base.tensor(name)
        for other in filter(is_embedding, self.changes):
            if self.knows_tie and (_is_head(name) or _is_head(other)):
                continue
            other_info = self.base.tensor(other)
            same_type = (info.shape, info.dtype) == (other_info.shape, other_info.dtype)
            if same_type and same_bytes(base, self.base.read(other)):
                return self.changes[other]
        return None


def is_embedding(name: str) -> bool:
    """Whether a tensor has a row for each token, by its name."""
    module, _, kind = name.rpartition(".")
    return kind == "weight" and module.rpartition(".")[2] in _EMBEDDING_MODULES


def _is_head(name: str) -> bool:
    return name.removesuffix(".weight").rpartition(".")[2] in _HEADS
