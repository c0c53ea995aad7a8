"""Images and texts under a head: logits by hand, texts apart from their neighbours, crops."""

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
from hubmerge.models.loading import open_model
from tests.learners.worlds import CLASSES, batch_of, opened

Folders = dict[str, Path]


def under(head: nn.Module) -> ImageLearner:
    """A learner whose images are their own features."""
    return ImageLearner(Classifier(nn.Identity(), head), plain=torch.tensor)


def noise(seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 24, 3), np.uint8)
    return Image.fromarray(pixels)


def test_logits_are_the_scale_times_the_cosine() -> None:
    # (3, 4) has length 5: cosines 0.6 and 0.8 to the axes.
    logits = LabelHead(10 * torch.eye(2))(torch.tensor([[3.0, 4.0], [0.0, -2.0]]))
    torch.testing.assert_close(logits, torch.tensor([[6.0, 8.0], [0.0, -10.0]]))


def test_loss_and_answers_by_hand() -> None:
    learner = under(LabelHead(2 * torch.eye(2)))
    batch = batch_of(learner, ([1.0, 0.0], 0), ([0.0, 7.0], 0))
    # Logits (2, 0) and (0, 2), and both are of class 0.
    right, wrong = math.log(1 + math.exp(-2)), math.log(1 + math.exp(2))
    assert learner.loss(learner.network, batch).item() == pytest.approx(right + wrong)
    predictions, references = learner.answers(learner.network, batch)
    assert (predictions.tolist(), references.tolist()) == ([[0], [1]], [[0], [0]])
    assert learner.count(batch) == 2


def test_a_head_to_be_trained_has_no_opinion_yet() -> None:
    learner = under(new_head(2, 4))
    batch = batch_of(learner, ([3.0, -1.0], 2))
    assert learner.network(batch["image"]).tolist() == [[0.0] * 4]
    assert learner.loss(learner.network, batch).item() == pytest.approx(math.log(4))
    assert all(weight.requires_grad for weight in learner.network.head.parameters())


def test_a_head_of_labels_is_never_trained() -> None:
    assert list(LabelHead(torch.eye(2)).parameters()) == []


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_logits_that_are_no_numbers_are_no_answer(wrong: float) -> None:
    learner = under(nn.Identity())
    batch = batch_of(learner, ([wrong, 1.0], 0))
    with pytest.raises(CheckpointError, match="answers are not numbers"):
        learner.answers(learner.network, batch)


TEXTS = ["the cat", "is this true?", "good films are fun and bad films are dull" * 3, "a"]


@pytest.fixture(scope="module")
def texts(folders: Folders) -> TextLearner:
    learner: TextLearner = opened(folders["bert"], "text", max_tokens=30)[1]
    return learner


@torch.no_grad()
def logits(learner: TextLearner, *said: str) -> Tensor:
    batch = batch_of(learner, *((text, 0) for text in said))
    return learner.network(batch["input_ids"], batch["attention_mask"])


@given(st.permutations(TEXTS), st.integers(1, 4))
@settings(max_examples=20, deadline=None)
def test_a_text_does_not_feel_its_neighbours(
    texts: TextLearner, order: list[str], count: int
) -> None:
    together = logits(texts, *order[:count])
    alone = torch.cat([logits(texts, text) for text in order[:count]])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    assert alone.std() > 0.01  # tiny as it is, the model tells texts apart


def test_a_batch_is_padded_to_its_longest_text_and_masked(texts: TextLearner) -> None:
    batch = batch_of(texts, ("a", 2), ("the cat sat on the mat", 0))
    short, long = batch["input_ids"]
    assert batch["attention_mask"].tolist() == [[1] * 3 + [0] * (len(long) - 3), [1] * len(long)]
    assert set(short[3:].tolist()) == {texts.tokenizer.pad_token_id}
    assert texts.tokenizer.decode(long, skip_special_tokens=True) == "the cat sat on the mat"
    assert batch["label"].tolist() == [2, 0]


def test_a_text_is_cut_at_max_tokens(texts: TextLearner) -> None:
    def read(most: int) -> list[int]:
        learner = dataclasses.replace(texts, max_tokens=most)
        trained = learner.for_training((TEXTS[2], 0), seed=3)["input_ids"].tolist()
        assert trained == learner.for_evaluation((TEXTS[2], 0))["input_ids"].tolist()
        return trained

    whole = read(60)
    assert len(whole) > 5
    assert read(5) == [*whole[:4], texts.tokenizer.sep_token_id]


def test_no_text_is_longer_than_its_model_takes(folders: Folders) -> None:
    model, learner = opened(folders["bert"], "text", max_tokens=1000)
    assert (model.length, learner.max_tokens) == (64, 64)
    assert logits(learner, TEXTS[2] * 20).shape == (1, len(CLASSES))


@pytest.fixture(scope="module")
def cropping(folders: Folders) -> ImageLearner:
    model: Any = open_model(folders["vit"], "image")
    plain, augmented = model.transform(augment=False), model.transform(augment=True)
    return ImageLearner(Classifier(model.encoder, new_head(2, 2)), plain, augmented)


def test_a_crop_hangs_on_its_seed_alone(cropping: ImageLearner) -> None:
    seeds = (7, 7, 8)
    crops = []
    for seed in seeds:
        crops.append(cropping.for_training((noise(), 1), seed)["image"])
        torch.rand(5)
    assert torch.equal(crops[0], crops[1])
    assert not torch.equal(crops[0], crops[2])


def test_a_crop_draws_nothing_from_the_global_generator(cropping: ImageLearner) -> None:
    before = torch.random.get_rng_state()
    cropping.for_training((noise(), 1), seed=7)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_evaluation_never_crops(cropping: ImageLearner) -> None:
    one, two = (cropping.for_evaluation((noise(), 1))["image"] for _ in range(2))
    assert torch.equal(one, two)
    assert torch.equal(one, cropping.plain(noise()))
    uncropped = ImageLearner(cropping.network, cropping.plain)
    assert torch.equal(uncropped.for_training((noise(), 1), seed=7)["image"], one)


def test_images_become_one_batch(cropping: ImageLearner) -> None:
    batch = batch_of(cropping, (noise(0), 1), (noise(1), 0))
    assert batch["image"].shape == (2, 3, 16, 16)
    assert batch["label"].tolist() == [1, 0]
    assert cropping.count(batch) == 2
