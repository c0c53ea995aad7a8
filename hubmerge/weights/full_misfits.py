"""Tensors of a full expert that do not fit those of its base, and what a user can do about it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from hubmerge.weights.adapter_config_fields import Problem
from hubmerge.weights.checkpoint import Checkpoint
from hubmerge.weights.class_heads import is_class_head
from hubmerge.weights.header import TensorInfo, safe_name, summarize_names
from hubmerge.weights.match_options import FULL_EXPERT_HINT, HEADS_HINT, VOCABULARY_HINT

_EMBEDDINGS = (
    "embed_tokens", "wte", "word_embeddings", "embed_in", "shared", "lm_head", "embed_out",
    "proj_out",
)  # fmt: skip


def find_misfits(
    base: Checkpoint, expert: Checkpoint, names: Mapping[str, str], label: str
) -> Iterator[Problem]:
    """The tensors of another shape or kind, with a hint on heads and on vocabularies."""
    by_hint: dict[str, list[str]] = {}
    for name, own in names.items():
        ours, theirs = base.index[name], expert.index[own]
        if not theirs.fits(ours):
            text = f"{safe_name(name)} ({_describe(theirs)}, in the base {_describe(ours)})"
            by_hint.setdefault(_misfit_hint(name, ours, theirs), []).append(text)
    for hint, misfits in by_hint.items():
        yield f"{label} does not fit the base in {summarize_names(misfits, 'tensor')}.", hint


def _misfit_hint(name: str, ours: TensorInfo, theirs: TensorInfo) -> str:
    if is_class_head(name):
        return HEADS_HINT
    parts = set(name.split("."))
    if parts & set(_EMBEDDINGS) and ours.shape[1:] == theirs.shape[1:]:
        return VOCABULARY_HINT
    return FULL_EXPERT_HINT


def _describe(tensor: TensorInfo) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}"
