"""From images to a number: the classifier, the accuracy, and what is kept in memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL.Image import Image
from torch import Tensor, nn

import hubmerge
from hubmerge.errors import CheckpointError
from hubmerge.evaluation import BATCH, Examples, ImageClassifier, accuracy, classifier
from hubmerge.models.vision_text import open_model
from hubmerge.tasks.data import Split, load_split
from hubmerge.tasks.task import find_task

MINI = Path(hubmerge.__file__).parent / "mini" / "base"


@pytest.fixture(scope="module")
def fashion() -> Split:
    return load_split(find_task("mini-fashion"), "test")


def network() -> ImageClassifier:
    """The first two pixels of an image are its features; the head looks at each of them."""

    class Corner(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images[:, 0, 0, :2]

    return ImageClassifier(Corner(), 10 * torch.eye(2))


def image(*pixels: float) -> Tensor:
    return torch.tensor(pixels, dtype=torch.float32).expand(3, 1, 2)


def test_logits_are_the_heads_scale_times_the_cosine() -> None:
    assert network()(image(3.0, 4.0)[None]).tolist() == [pytest.approx([6.0, 8.0])]


def test_accuracy_over_all_batches_by_hand() -> None:
    batches = [
        (torch.stack([image(1, 0), image(0, 1), image(2, 1)]), torch.tensor([0, 1, 1])),
        (torch.stack([image(1, 9)]), torch.tensor([1])),
    ]
    said = accuracy(network(), iter(batches), "accuracy")
    # Right, right, wrong, right.
    assert said == {"value": 0.75, "count": 4, "stderr": pytest.approx(0.2165064)}


@pytest.mark.parametrize("training", [True, False])
def test_it_is_measured_in_evaluation_mode_and_put_back(training: bool) -> None:
    net = network().train(training)
    net.encoder = nn.Sequential(net.encoder, nn.Dropout(p=1.0))
    net.encoder.train(training)
    said = accuracy(net, [(image(0, 1)[None], torch.tensor([1]))], "accuracy")
    assert said["value"] == 1.0
    assert net.training == net.encoder.training == training


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_logits_that_are_no_numbers_are_no_guess(wrong: float) -> None:
    with pytest.raises(CheckpointError, match="logits are not numbers"):
        accuracy(network(), [(image(wrong, 1)[None], torch.tensor([0]))], "accuracy")


def test_the_mini_base_scores_what_its_makers_measured(fashion: Split) -> None:
    model = open_model(MINI)
    examples = Examples(model.transform(augment=False), fashion)
    said = accuracy(classifier(model, fashion), examples.batches(), "accuracy")
    assert said["count"] == 1000
    assert said["value"] == pytest.approx(0.44, abs=0.01)
    assert said["stderr"] == pytest.approx((said["value"] * (1 - said["value"]) / 1000) ** 0.5)


class Counting:
    """A transform that counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, picture: Image) -> Tensor:
        self.calls += 1
        return torch.zeros(3, 2, 2)


@pytest.mark.parametrize(("keep", "calls"), [(10**9, 300), (0, 600), (100 * 48, 500)])
def test_images_are_prepared_once_where_there_is_room(
    fashion: Split, keep: int, calls: int
) -> None:
    transform, some = Counting(), dataclasses.replace(fashion, rows=fashion.rows.select(range(300)))
    examples = Examples(transform, some, keep_bytes=keep)
    for _ in range(2):
        sizes = [len(labels) for _, labels in examples.batches()]
    assert (sizes, transform.calls) == ([BATCH, 300 - BATCH], calls)


def test_large_splits_are_not_held(fashion: Split) -> None:
    """Without room only one batch is alive at a time."""
    alive: list[Any] = []

    def consumed() -> Iterator[int]:
        import weakref

        for images, _ in Examples(
            open_model(MINI).transform(False), fashion, keep_bytes=0
        ).batches():
            alive.append(weakref.ref(images))
            yield sum(said() is not None for said in alive)

    assert max(consumed()) <= 2
