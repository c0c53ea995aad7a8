"""Make the learner for a loaded model and a task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from hubmerge.errors import UsageError
from hubmerge.learners.classification import TEXT_INPUTS, Classifier, ImageLearner, TextLearner
from hubmerge.learners.embedding import embedding_learner
from hubmerge.learners.heads import head_path, label_head, load_head, missing_head, new_head
from hubmerge.learners.learner import Learner
from hubmerge.learners.pair_encoder import PairEncoder
from hubmerge.learners.ranking import LanguageLearner, TargetScorer
from hubmerge.learners.row_encoder import RowEncoder
from hubmerge.models.class_model import (
    ClassModel,
    class_order,
    has_config,
    is_class_model,
    load_class_model,
)
from hubmerge.models.embedder import Embedder
from hubmerge.models.language_model import LanguageModel
from hubmerge.models.loading import Model
from hubmerge.models.text_decoder import PaddedClassifier, TextDecoder
from hubmerge.models.text_encoder import TextEncoder
from hubmerge.models.vision_encoder import VisionEncoder
from hubmerge.tasks.task import Task


def make_learner(model: Model, task: Task, head: nn.Module | None, augment: bool) -> Learner:
    """The learner for a model and a task; classification needs a head, other kinds have none.

    With `augment`, images are cropped at random in training.
    """
    max_tokens = task.spec.max_tokens
    if isinstance(model, Embedder):
        return embedding_learner(model, max_tokens)
    if isinstance(model, LanguageModel):
        scorer = TargetScorer(model.forward_module, model.is_seq2seq, model.shares_encoder)
        positions = _max_positions(model)
        if model.is_seq2seq and positions is not None:  # prompts and targets are counted apart
            max_tokens, positions = min(max_tokens, positions), None
        pairs = PairEncoder(model.tokenizer, model.is_seq2seq, task.spec.join, task.spec.eos)
        return LanguageLearner(scorer, RowEncoder(pairs, max_tokens, positions))
    assert head is not None
    network = head if isinstance(head, ClassModel) else Classifier(_encoder(model), head)
    if isinstance(model, TextEncoder | TextDecoder):
        return TextLearner(network, model.tokenizer, min(max_tokens, model.max_tokens))
    augmented = model.transform(augment=True) if augment else None
    return ImageLearner(network, model.transform(augment=False), augmented)


def initial_head(model: Model, task: Task, classes: tuple[str, ...]) -> nn.Module | None:
    """The head that training starts with, made from the base model; None if the task has none.

    Raises UsageError if the task needs a head of labels and the model cannot encode text, and for a
    model with a decoder, which has no features that a head could take.
    """
    if isinstance(model, LanguageModel | Embedder):
        return None
    if isinstance(model, TextDecoder):
        raise UsageError(
            f"This {model.name} has a decoder: it classifies texts only under a head of its own.",
            "Use experts with such heads and --heads keep, or a task of `kind: rank`.",
        )
    if task.spec.head == "trained":
        return new_head(model.width, len(classes))
    if isinstance(model, VisionEncoder):
        raise UsageError(
            f"This {model.name} has no text encoder, so task {task.name} cannot use a head of "
            "labels.",
            "Write `head: trained` in the task's YAML, or use a CLIP model as the base.",
        )
    return label_head(model, task, classes)


def load_trained_head(
    model: Model, task: Task, classes: tuple[str, ...], folder: Path
) -> nn.Module:
    """The trained head of a task, from the folder of an expert or of a merge of experts.

    It is in a file of its own, beside a merge with the whole model that it belongs to, or a part of
    the model itself. Raises UsageError if there is none, CheckpointError if it does not fit.
    """
    assert not isinstance(model, LanguageModel | Embedder)
    file = head_path(folder, task)
    if file.is_file() and has_config(file):
        return class_model(model, load_class_model(folder, file), classes, str(file))
    if not file.is_file() and is_class_model(model.module):
        return class_model(model, model.module, classes, str(folder))
    if isinstance(model, TextDecoder):
        raise missing_head(folder, task)
    return load_head(folder, task, model.width, classes)


def class_model(model: Model, module: Any, classes: tuple[str, ...], where: str) -> ClassModel:
    """A classifier of transformers as the network of a task, with the inputs of a model.

    Raises CheckpointError naming `where` if its head is for another number of classes.
    """
    order = class_order(module.config, classes, where)
    if isinstance(model, TextDecoder):
        module = PaddedClassifier(module)
    names = TEXT_INPUTS if isinstance(model, TextEncoder | TextDecoder) else ("pixel_values",)
    return ClassModel(module, names, order)


def _encoder(model: Model) -> nn.Module:
    assert not isinstance(
        model, LanguageModel | TextDecoder | Embedder
    )  # none takes a head of features
    return model.encoder


def _max_positions(model: LanguageModel) -> int | None:
    """The number of tokens that a language model has positions for, without those of a prefix."""
    positions = getattr(model.module.config, "max_position_embeddings", None)
    if positions is None:
        return None
    adapter_config = getattr(model.forward_module, "active_peft_config", None)
    return int(positions) - int(getattr(adapter_config, "num_virtual_tokens", 0))
