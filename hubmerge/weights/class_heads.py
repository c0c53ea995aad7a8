"""The tensors of a model that are the head of its task: classes, answers, masked words."""

from __future__ import annotations

from collections.abc import Iterable

# The first or second parts of the names of heads in transformers and timm.
_HEADS = {
    "classifier", "pre_classifier", "cls_classifier", "distillation_classifier",
    "classification_head", "score", "qa_outputs", "cls", "head", "sop_classifier", "logits_proj",
    "discriminator_predictions", "generator_predictions", "vocab_transform", "vocab_layer_norm",
    "vocab_projector", "predictions", "sequence_summary", "reg_head", "cls_head",
}  # fmt: skip
_POOLER = "pooler"


def is_class_head(name: str) -> bool:
    """Whether a tensor, by its plain name, belongs to the head of a task."""
    return name.partition(".")[0] in _HEADS


def own_head(extra: Iterable[str]) -> list[str]:
    """The tensors of an expert's own head, by plain names, among those that its base lacks.

    A pooler that the base lacks was trained with the head, and belongs to it.
    """
    return [name for name in extra if is_class_head(name) or _POOLER in name.split(".")[:2]]
