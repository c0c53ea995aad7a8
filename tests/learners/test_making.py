"""Which learner a model is at a task, and the heads it starts with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hubmerge.errors import CheckpointError, UsageError
from hubmerge.learners.classification import Classifier, ImageLearner, LabelHead, TextLearner
from hubmerge.learners.factory import first_head, make_learner, trained_head
from hubmerge.learners.heads import save_head
from hubmerge.learners.ranking import LanguageLearner, Reader
from hubmerge.models.loading import open_model
from tests.learners.worlds import CLASSES, opened, task

Folders = dict[str, Path]


@pytest.mark.parametrize(
    ("family", "kind", "said", "learner", "head"),
    [
        ("clip", "image", {}, ImageLearner, LabelHead),
        ("clip", "image", {"head": "trained"}, ImageLearner, nn.Linear),
        ("vit", "image", {"head": "trained"}, ImageLearner, nn.Linear),
        ("bert", "text", {}, TextLearner, LabelHead),
        ("bert", "text", {"head": "trained"}, TextLearner, nn.Linear),
    ],
)
def test_encoders_classify(
    folders: Folders, family: str, kind: Any, said: Any, learner: type, head: type
) -> None:
    model, made = opened(folders[family], kind, **said)
    assert type(made) is learner
    assert type(made.network) is Classifier
    assert made.network.encoder is model.encoder
    assert type(made.network.head) is head
    assert made.network.head.weight.shape == (len(CLASSES), model.width)


@pytest.mark.parametrize("kind", ["rank", "target"])
@pytest.mark.parametrize("family", ["t5", "gpt2", "llama"])
def test_language_models_read(folders: Folders, family: str, kind: Any) -> None:
    model, made = opened(folders[family], kind, max_tokens=17)
    assert (type(made), type(made.network)) == (LanguageLearner, Reader)
    assert made.network.model is model.module
    assert (made.is_seq2seq, made.max_tokens) == (family == "t5", 17)
    assert first_head(model, task(kind), ()) is None


def test_only_images_that_are_augmented_are_cropped(folders: Folders) -> None:
    model = open_model(folders["clip"], "image")
    asked = task("image")
    made: Any = [
        make_learner(model, asked, first_head(model, asked, CLASSES), augment)
        for augment in (True, False)
    ]
    assert [learner.augmented is None for learner in made] == [False, True]


def test_a_vit_cannot_have_a_head_of_labels(folders: Folders) -> None:
    with pytest.raises(UsageError, match="This ViTModel embeds no words, so task small") as refused:
        opened(folders["vit"], "image")
    assert "`head: trained`" in refused.value.hint


@pytest.mark.parametrize(
    ("family", "kind"),
    [("bert", "image"), ("t5", "text"), ("bert", "rank"), ("vit", "target"), ("clip", "text")],
)
def test_a_model_of_another_kind_is_refused(folders: Folders, family: str, kind: Any) -> None:
    with pytest.raises(CheckpointError, match=f"cannot do a task of kind {kind}"):
        opened(folders[family], kind)


@pytest.mark.parametrize(("family", "kind"), [("vit", "image"), ("bert", "text")])
def test_an_experts_head_is_found_beside_it(
    folders: Folders, tmp_path: Path, family: str, kind: Any
) -> None:
    model, made = opened(folders[family], kind, head="trained")
    nn.init.eye_(made.network.head.weight)
    asked = task(kind, head="trained")
    with pytest.raises(UsageError, match="no head for task small"):
        trained_head(model, asked, CLASSES, tmp_path)
    save_head(made.network.head, tmp_path, asked, CLASSES)
    found = trained_head(model, asked, CLASSES, tmp_path)
    assert torch.equal(found.get_parameter("weight"), made.network.head.weight)
