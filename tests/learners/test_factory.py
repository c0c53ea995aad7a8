"""Which learner is made for a model and a task, and its initial head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hubmerge.errors import CheckpointError, UsageError
from hubmerge.learners.classification import Classifier, ImageLearner, LabelHead, TextLearner
from hubmerge.learners.factory import initial_head, load_trained_head, make_learner
from hubmerge.learners.heads import save_head
from hubmerge.learners.ranking import LanguageLearner, TargetScorer
from hubmerge.models.loading import load_model
from tests.learners.builders import CLASSES, load_learner, task

Folders = dict[str, Path]


@pytest.mark.parametrize(
    ("family", "kind", "fields", "learner", "head"),
    [
        ("clip", "image", {}, ImageLearner, LabelHead),
        ("clip", "image", {"head": "trained"}, ImageLearner, nn.Linear),
        ("vit", "image", {"head": "trained"}, ImageLearner, nn.Linear),
        ("bert", "text", {}, TextLearner, LabelHead),
        ("bert", "text", {"head": "trained"}, TextLearner, nn.Linear),
    ],
)
def test_encoders_get_a_classifier(
    folders: Folders, family: str, kind: Any, fields: Any, learner: type, head: type
) -> None:
    model, result = load_learner(folders[family], kind, **fields)
    assert type(result) is learner
    assert type(result.network) is Classifier
    assert result.network.encoder is model.encoder
    assert type(result.network.head) is head
    assert result.network.head.weight.shape == (len(CLASSES), model.width)


@pytest.mark.parametrize("kind", ["rank", "target"])
@pytest.mark.parametrize("family", ["t5", "gpt2", "llama"])
def test_language_models_get_a_target_scorer(folders: Folders, family: str, kind: Any) -> None:
    model, learner = load_learner(folders[family], kind, max_tokens=17)
    assert (type(learner), type(learner.network)) == (LanguageLearner, TargetScorer)
    assert learner.network.model is model.module
    assert (learner.is_seq2seq, learner.encoder.max_tokens) == (family == "t5", 17)
    assert initial_head(model, task(kind), ()) is None


def test_only_augmentation_crops_images(folders: Folders) -> None:
    model = load_model(folders["clip"], "image")
    image_task = task("image")
    learners: Any = [
        make_learner(model, image_task, initial_head(model, image_task, CLASSES), augment)
        for augment in (True, False)
    ]
    assert [learner.augmented_transform is None for learner in learners] == [False, True]


def test_a_vit_cannot_use_a_head_of_labels(folders: Folders) -> None:
    with pytest.raises(
        UsageError, match="This ViTModel has no text encoder, so task small"
    ) as refused:
        load_learner(folders["vit"], "image")
    assert "`head: trained`" in refused.value.hint


@pytest.mark.parametrize(
    ("family", "kind"),
    [("bert", "image"), ("t5", "text"), ("bert", "rank"), ("vit", "target"), ("clip", "text")],
)
def test_a_model_of_another_kind_is_refused(folders: Folders, family: str, kind: Any) -> None:
    with pytest.raises(CheckpointError, match=f"does not support tasks of kind {kind}"):
        load_learner(folders[family], kind)


@pytest.mark.parametrize(("family", "kind"), [("vit", "image"), ("bert", "text")])
def test_the_trained_head_of_an_expert_is_loaded_from_its_folder(
    folders: Folders, tmp_path: Path, family: str, kind: Any
) -> None:
    model, learner = load_learner(folders[family], kind, head="trained")
    nn.init.eye_(learner.network.head.weight)
    own_task = task(kind, head="trained")
    with pytest.raises(UsageError, match="no trained head for task small"):
        load_trained_head(model, own_task, CLASSES, tmp_path)
    save_head(learner.network.head, tmp_path, own_task, CLASSES)
    head = load_trained_head(model, own_task, CLASSES, tmp_path)
    assert torch.equal(head.get_parameter("weight"), learner.network.head.weight)
