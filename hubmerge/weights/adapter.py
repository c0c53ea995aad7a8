"""An adapter beside its base: which tensors of the base it changes, and by how much."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from hubmerge.weights.checkpoint import Checkpoint
from hubmerge.weights.difference import difference, same_bytes
from hubmerge.weights.dtypes import Array, cast, compute_dtype
from hubmerge.weights.lora import Change

# Under these a model keeps the one matrix that it looks words up in and tells words by.
_WORDS = {
    "shared", "embed_tokens", "wte", "word_embeddings", "lm_head", "embed_in", "embed_out",
    "decoder",
}  # fmt: skip


@dataclass(frozen=True)
class Adapter:
    """Changes by the name of the base's tensor; `saved` names tensors that take the base's place.

    Where a tensor has both, the change is to the saved values.
    """

    base: Checkpoint
    checkpoint: Checkpoint
    changes: Mapping[str, Change] = field(repr=False)
    saved: Mapping[str, str] = field(repr=False)

    def delta_from(self, base: Array, name: str) -> Array:
        """expert - base of one tensor, given what `base.read(name)` gave.

        float32, or float64 where the base has F64; exactly zero where the adapter changes nothing.
        """
        dtype = compute_dtype(self.base.tensor(name).dtype)
        change = self.changes.get(name) or self._twin_change(base, name)
        saved = self.checkpoint.read(self.saved[name]) if name in self.saved else None
        with np.errstate(all="ignore"):  # the caller looks for what is not finite
            if change is None:
                delta = np.zeros(base.shape, dtype)
            else:
                start = base if saved is None else saved
                delta = change.delta(start, lambda part: self._read(part, dtype))
            return delta if saved is None else delta + difference(saved, base, dtype)

    def agrees(self, base: Array, name: str) -> bool:
        """Whether a tensor that cannot be merged has the base's values in the adapter too."""
        tensor = self.saved.get(name)
        return tensor is None or np.array_equal(base, self.checkpoint.read(tensor))

    def _read(self, part: str, dtype: np.dtype[np.floating]) -> Array:
        return cast(self.checkpoint.read(part), dtype)

    def _twin_change(self, base: Array, name: str) -> Change | None:
        """The change of a tensor that this one is a copy of.

        A model that ties its head to its embedding has one matrix for both, which peft changes in
        place. Some files hold it twice, and transformers ties the two only while they agree.
        """
        if not _is_words(name) or name in self.saved:
            return None
        ours = self.base.tensor(name)
        for other in filter(_is_words, self.changes):
            theirs = self.base.tensor(other)
            alike = (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
            if alike and same_bytes(base, self.base.read(other)):
                return self.changes[other]
        return None


def _is_words(name: str) -> bool:
    module, _, kind = name.rpartition(".")
    return kind == "weight" and module.rpartition(".")[2] in _WORDS
