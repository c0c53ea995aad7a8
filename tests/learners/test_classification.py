"""Image and text classification: logits by hand, independence of the batch, random crops."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from hubmerge.errors import CheckpointError
from hubmerge.learners.classification import Classifier, ImageLearner, LabelHead, TextLearner
from hubmerge.learners.heads import new_head
from hubmerge.models.loading import load_model
from tests.learners.builders import CLASSES, batch_of, load_learner

Folders = dict[str, Path]


def learner_with(head: nn.Module) -> ImageLearner:
    """A learner whose inputs are already features."""
    return ImageLearner(Classifier(nn.Identity(), head), transform=torch.tensor)


def noise(seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 24, 3), np.uint8)
    return Image.fromarray(pixels)


def test_logits_are_the_scale_times_the_cosine() -> None:
    # (3, 4) has length 5: cosines 0.6 and 0.8 to the axes.
    logits = LabelHead(10 * torch.eye(2))(torch.tensor([[3.0, 4.0], [0.0, -2.0]]))
    torch.testing.assert_close(logits, torch.tensor([[6.0, 8.0], [0.0, -10.0]]))


def test_loss_and_predictions_by_hand() -> None:
    learner = learner_with(LabelHead(2 * torch.eye(2)))
    batch = batch_of(learner, ([1.0, 0.0], 0), ([0.0, 7.0], 0))
    # Logits (2, 0) and (0, 2); both labels are 0.
    correct, wrong = math.log(1 + math.exp(-2)), math.log(1 + math.exp(2))
    assert learner.loss(learner.network, batch).item() == pytest.approx(correct + wrong)
    predictions, references = learner.predict(learner.network, batch)
    assert (predictions.tolist(), references.tolist()) == ([[0], [1]], [[0], [0]])
    assert learner.count_terms(batch) == 2


def test_a_new_head_gives_equal_logits() -> None:
    learner = learner_with(new_head(2, 4))
    batch = batch_of(learner, ([3.0, -1.0], 2))
    assert learner.network(batch["image"]).tolist() == [[0.0] * 4]
    assert learner.loss(learner.network, batch).item() == pytest.approx(math.log(4))
    assert all(weight.requires_grad for weight in learner.network.head.parameters())


def test_a_head_of_labels_is_never_trained() -> None:
    assert list(LabelHead(torch.eye(2)).parameters()) == []


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_logits_that_are_not_finite_raise(value: float) -> None:
    learner = learner_with(nn.Identity())
    batch = batch_of(learner, ([value, 1.0], 0))
    with pytest.raises(CheckpointError, match="predictions are not finite"):
        learner.predict(learner.network, batch)


TEXTS = ["the cat", "is this true?", "good films are fun and bad films are dull" * 3, "a"]


@pytest.fixture(scope="module")
def texts(folders: Folders) -> TextLearner:
    learner: TextLearner = load_learner(folders["bert"], "text", max_tokens=30)[1]
    return learner


@torch.no_grad()
def logits(learner: TextLearner, *texts: str) -> Tensor:
    batch = batch_of(learner, *((text, 0) for text in texts))
    return learner.network(batch["input_ids"], batch["attention_mask"])


@given(st.permutations(TEXTS), st.integers(1, 4))
@settings(max_examples=20)
def test_logits_do_not_depend_on_the_rest_of_the_batch(
    texts: TextLearner, order: list[str], count: int
) -> None:
    together = logits(texts, *order[:count])
    single = torch.cat([logits(texts, text) for text in order[:count]])
    torch.testing.assert_close(together, single, atol=1e-5, rtol=1e-5)
    assert single.std() > 0.01  # texts have different logits even with this tiny model


def test_a_batch_is_padded_to_its_longest_text_and_masked(texts: TextLearner) -> None:
    batch = batch_of(texts, ("a", 2), ("the cat sat on the mat", 0))
    short, long = batch["input_ids"]
    assert batch["attention_mask"].tolist() == [[1] * 3 + [0] * (len(long) - 3), [1] * len(long)]
    assert set(short[3:].tolist()) == {texts.tokenizer.pad_token_id}
    assert texts.tokenizer.decode(long, skip_special_tokens=True) == "the cat sat on the mat"
    assert batch["label"].tolist() == [2, 0]


def test_a_text_is_truncated_to_max_tokens(texts: TextLearner) -> None:
    def read(limit: int) -> list[int]:
        learner = dataclasses.replace(texts, max_tokens=limit)
        trained = learner.for_training((TEXTS[2], 0), seed=3)["input_ids"].tolist()
        assert trained == learner.for_evaluation((TEXTS[2], 0))["input_ids"].tolist()
        return trained

    all_tokens = read(60)
    assert len(all_tokens) > 5
    assert read(5) == [*all_tokens[:4], texts.tokenizer.sep_token_id]


def test_max_tokens_is_at_most_the_length_of_the_model(folders: Folders) -> None:
    model, learner = load_learner(folders["bert"], "text", max_tokens=1000)
    assert (model.max_tokens, learner.max_tokens) == (64, 64)
    assert logits(learner, TEXTS[2] * 20).shape == (1, len(CLASSES))


@pytest.fixture(scope="module")
def cropping(folders: Folders) -> ImageLearner:
    model: Any = load_model(folders["vit"], "image")
    plain, augmented = model.transform(augment=False), model.transform(augment=True)
    return ImageLearner(Classifier(model.encoder, new_head(2, 2)), plain, augmented)


def test_a_crop_depends_only_on_its_seed(cropping: ImageLearner) -> None:
    seeds = (7, 7, 8)
    crops = []
    for seed in seeds:
        crops.append(cropping.for_training((noise(), 1), seed)["image"])
        torch.rand(5)
    assert torch.equal(crops[0], crops[1])
    assert not torch.equal(crops[0], crops[2])


def test_cropping_leaves_the_global_generator_alone(cropping: ImageLearner) -> None:
    before = torch.random.get_rng_state()
    cropping.for_training((noise(), 1), seed=7)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_evaluation_never_crops(cropping: ImageLearner) -> None:
    first, second = (cropping.for_evaluation((noise(), 1))["image"] for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(first, cropping.transform(noise()))
    uncropped = ImageLearner(cropping.network, cropping.transform)
    assert torch.equal(uncropped.for_training((noise(), 1), seed=7)["image"], first)


def test_images_are_stacked_into_a_batch(cropping: ImageLearner) -> None:
    batch = batch_of(cropping, (noise(0), 1), (noise(1), 0))
    assert batch["image"].shape == (2, 3, 16, 16)
    assert batch["label"].tolist() == [1, 0]
    assert cropping.count_terms(batch) == 2
