"""From an opened model and a task to a learner."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from hubmerge.errors import UsageError
from hubmerge.learners.classification import Classifier, ImageLearner, TextLearner
from hubmerge.learners.heads import label_head, load_head, new_head
from hubmerge.learners.learner import Learner
from hubmerge.learners.ranking import LanguageLearner, Reader
from hubmerge.models.language_model import LanguageModel
from hubmerge.models.loading import Model
from hubmerge.models.text_encoder import TextEncoder
from hubmerge.models.vision_encoder import VisionEncoder
from hubmerge.tasks.task import Task


def make_learner(model: Model, task: Task, head: nn.Module | None, augment: bool) -> Learner:
    """The model at the task; classification needs a head, other kinds have none.

    `augment` lets images be cropped at random in training.
    """
    longest = task.spec.max_tokens
    if isinstance(model, LanguageModel):
        reader = Reader(model.runs, model.is_seq2seq, model.shares_encoder)
        room = _positions(model)
        if model.is_seq2seq and room is not None:  # prompts and targets have theirs apart
            longest, room = min(longest, room), None
        return LanguageLearner(reader, model.tokenizer, model.is_seq2seq, longest, room)
    assert head is not None
    network = Classifier(model.encoder, head)
    if isinstance(model, TextEncoder):
        return TextLearner(network, model.tokenizer, min(longest, model.length))
    augmented = model.transform(augment=True) if augment else None
    return ImageLearner(network, model.transform(augment=False), augmented)


def first_head(model: Model, task: Task, classes: tuple[str, ...]) -> nn.Module | None:
    """The head that training starts with, made from the base; None where the task has none.

    Raises UsageError for a head of labels upon a model that embeds no words.
    """
    if isinstance(model, LanguageModel):
        return None
    if task.spec.head == "trained":
        return new_head(model.width, len(classes))
    if isinstance(model, VisionEncoder):
        raise UsageError(
            f"This {model.name} embeds no words, so task {task.name} cannot have a head of labels.",
            "Write `head: trained` in the task's YAML, or start from a CLIP.",
        )
    return label_head(model, task, classes)


def trained_head(model: Model, task: Task, classes: tuple[str, ...], files: Path) -> nn.Module:
    """The trained head of a task from the folder of an expert or of a merge of experts."""
    assert not isinstance(model, LanguageModel)
    return load_head(files, task, model.width, classes)


def _positions(model: LanguageModel) -> int | None:
    """The tokens that a language model has positions for, less those of a prefix."""
    said = getattr(model.module.config, "max_position_embeddings", None)
    if said is None:
        return None
    prefix = getattr(model.runs, "active_peft_config", None)
    return int(said) - int(getattr(prefix, "num_virtual_tokens", 0))
