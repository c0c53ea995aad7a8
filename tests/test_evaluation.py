"""Accuracy over batches: padding, caching, and several processes."""

from __future__ import annotations

import dataclasses
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL.Image import Image
from torch import Tensor, nn

import hubmerge
from hubmerge.errors import CheckpointError
from hubmerge.evaluation import Examples, accuracy
from hubmerge.learners.classification import Classifier, ImageLearner, LabelHead
from hubmerge.learners.factory import initial_head, make_learner
from hubmerge.learners.learner import Batch
from hubmerge.models.loading import load_model
from hubmerge.tasks.data import Split, TargetExample, load_split
from hubmerge.tasks.labels import ClassLabels
from hubmerge.tasks.lookup import find_task
from tests.learners.builders import batch_of, counting_learner, task

MINI = Path(hubmerge.__file__).parent / "mini" / "base"
CPU = torch.device("cpu")
close = pytest.approx


@pytest.fixture(scope="module")
def fashion() -> Split:
    return load_split(find_task("mini-fashion"), "test")


class Corner(nn.Module):
    """The first two pixels of an image are its features."""

    def forward(self, images: Tensor) -> Tensor:
        return images[:, 0, 0, :2]


def corners(plain: Callable[[Any], Tensor] = lambda image: image) -> ImageLearner:
    """A learner whose head reads each of the two features."""
    return ImageLearner(Classifier(Corner(), LabelHead(10 * torch.eye(2))), plain)


def image(*pixels: float) -> Tensor:
    return torch.tensor(pixels, dtype=torch.float32).expand(3, 1, 2)


def evaluate(*batches: tuple[Batch, int], **options: Any) -> dict[str, float]:
    learner = corners()
    return accuracy(learner, learner.network, batches, "accuracy", CPU, **options)


def three_rows() -> Batch:
    return batch_of(corners(), (image(1, 0), 0), (image(0, 1), 1), (image(2, 1), 1))


def one_row() -> Batch:
    return batch_of(corners(), (image(1, 9), 1))


def test_accuracy_over_all_batches_by_hand() -> None:
    # Right, right, wrong, right.
    result = evaluate((three_rows(), 3), (one_row(), 1))
    assert result == {"value": 0.75, "count": 4, "stderr": close(0.2165064)}


def test_padding_rows_do_not_count() -> None:
    assert evaluate((three_rows(), 2), (one_row(), 0)) == {"value": 1.0, "count": 2, "stderr": 0.0}


def test_the_predictions_of_all_processes_count() -> None:
    """Each process gathers the predictions of all, including padding."""
    batches = [torch.tensor([[[1, 0]], [[0, 0]], [[1, -1]]]), torch.tensor([[[1, 1]]])]
    others = iter(batches)
    result = evaluate(
        (three_rows(), 3), (one_row(), 1), gather=lambda own: torch.cat([own, next(others)])
    )
    # Own rows as above; those of the others are wrong, right, padding, and right.
    assert (result["value"], result["count"]) == (close(5 / 7), 7)


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_mode_is_set_and_the_mode_before_restored(training: bool) -> None:
    learner = corners()
    network = learner.network
    network.encoder = nn.Sequential(network.encoder, nn.Dropout(p=1.0))
    network.train(training)
    result = accuracy(learner, network, [(one_row(), 1)], "accuracy", CPU)
    assert result["value"] == 1.0
    assert network.training == network.encoder.training == network.encoder[1].training == training


def test_no_gradients_are_recorded() -> None:
    gathered: list[Tensor] = []
    evaluate((one_row(), 1), gather=lambda own: gathered.append(own) or own)
    assert not gathered[0].requires_grad
    assert gathered[0].is_inference()


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_predictions_that_are_not_finite_are_refused(wrong: float) -> None:
    with pytest.raises(CheckpointError, match="predictions are not finite"):
        evaluate((batch_of(corners(), (image(wrong, 1), 0)), 1))


def test_the_mini_base_has_its_documented_accuracy(fashion: Split) -> None:
    model = load_model(MINI)
    head = initial_head(model, fashion.task, fashion.classes)
    learner = make_learner(model, fashion.task, head, augment=False)
    batches = Examples(learner.for_evaluation, fashion).batches(learner.collate)
    result = accuracy(learner, learner.network, batches, "accuracy", CPU)
    assert result["count"] == 1000
    assert result["value"] == close(0.44, abs=0.01)
    assert result["stderr"] == close((result["value"] * (1 - result["value"]) / 1000) ** 0.5)


# Tokens: words are digits, 9 is the end of the text, and the model predicts n + 1 after n.


def evaluate_tokens(*batches: tuple[Batch, int], **options: Any) -> dict[str, float]:
    learner = counting_learner()
    return accuracy(learner, learner.network, batches, "token_accuracy", CPU, **options)


def test_every_token_of_a_target_counts_equally() -> None:
    batch = batch_of(counting_learner(), TargetExample("2 3", "4 5 7"), TargetExample("0", "1"))
    # Correct: 4, 5 and 1; wrong: 7 and both ends.
    assert evaluate_tokens((batch, 2)) == {
        "value": 0.5,
        "count": 6,
        "stderr": close(0.25**0.5 / 6**0.5),
    }
    batch = batch_of(counting_learner(), TargetExample("2 3", "4 5 7"), TargetExample("0", "1"))
    assert (evaluate_tokens((batch, 1))["value"], evaluate_tokens((batch, 1))["count"]) == (0.5, 4)


def test_targets_of_several_processes_are_padded_to_one_length() -> None:
    batch = batch_of(counting_learner(), TargetExample("0", "1"))

    def gathered(own: Tensor) -> Tensor:
        assert own.tolist() == [[[1, 1], [2, 9]]]
        longer = torch.tensor([[[4, 4], [5, 5], [6, 9]]])
        return torch.cat([nn.functional.pad(own, (0, 0, 0, 1), value=-1), longer])

    result = evaluate_tokens((batch, 1), gather=gathered)
    assert (result["value"], result["count"]) == (close(3 / 5), 5)


# The cache of prepared rows.


class CountingTransform:
    """A transform that counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, picture: Any) -> Tensor:
        self.calls += 1
        return torch.zeros(3, 2, 2)


# An image of 12 floats and its label take 56 bytes.
@pytest.mark.parametrize(("cache_bytes", "calls"), [(10**9, 300), (0, 600), (100 * 56 + 55, 500)])
def test_rows_are_prepared_once_if_they_fit_the_cache(
    fashion: Split, cache_bytes: int, calls: int
) -> None:
    transform = CountingTransform()
    learner, split = corners(transform), first_rows(fashion, 300)
    examples = Examples(learner.for_evaluation, split, cache_bytes=cache_bytes)
    for _ in range(2):
        sizes = [(len(batch["label"]), count) for batch, count in examples.batches(learner.collate)]
    assert (sizes, transform.calls) == ([(256, 256), (44, 44)], calls)
    assert examples.cached_bytes <= cache_bytes


def first_rows(split: Split, count: int) -> Split:
    return dataclasses.replace(split, rows=split.rows.select(range(count)))


def test_large_splits_are_not_kept_in_memory(fashion: Split) -> None:
    """Without a cache only one batch is alive at a time."""
    learner = corners(load_model(MINI).transform(augment=False))
    alive: list[Any] = []

    def consumed() -> Iterator[int]:
        examples = Examples(learner.for_evaluation, fashion, cache_bytes=0)
        for batch, _ in examples.batches(learner.collate):
            alive.append(weakref.ref(batch["image"]))
            yield sum(batch() is not None for batch in alive)

    assert max(consumed()) <= 2
    assert len(alive) == 4


def test_the_size_of_choices_counts() -> None:
    """A row of a prompt and its choices is as large as all of its tokens."""
    learner = counting_learner()
    examples = Examples(learner.for_evaluation, numbered_questions(2))
    list(examples.batches(learner.collate))
    # A prompt of one token; targets of one and two, each with its end; the answer.
    assert examples.cached_bytes == 2 * (8 * (1 + 2 + 3) + 8)


def numbered_questions(count: int) -> Split:
    """Questions whose prompt is the number of the row."""
    rank_task = task("rank", choices=("1", "1 2"), answer="0")
    numbers = datasets.Dataset.from_dict({"q": [str(row % 10) for row in range(count)]})
    return Split(rank_task, "test", numbers, ClassLabels())


# Several processes.


def numbered_labels(count: int) -> Split:
    data = datasets.Dataset.from_dict({"text": ["x"] * count, "label": list(range(count))})
    names = tuple(map(str, range(count)))
    return Split(task("text"), "test", data, ClassLabels(names, tuple(range(count))))


def collate_labels(examples: Sequence[Any]) -> Batch:
    return {"label": torch.tensor([label for _, label in examples])}


@given(st.integers(1, 200), st.integers(1, 9))
@settings(max_examples=40)
def test_processes_together_see_every_row_once(count: int, world_size: int) -> None:
    examples = Examples(lambda example: example, numbered_labels(count))
    shares = [
        list(examples.batches(collate_labels, rank, world_size)) for rank in range(world_size)
    ]
    counted = Counter(
        row for share in shares for batch, real in share for row in batch["label"][:real].tolist()
    )
    assert counted == Counter(range(count))
    for batches in zip(*shares, strict=True):  # equal numbers and sizes, as all must gather
        assert len({len(batch["label"]) for batch, _ in batches}) == 1
        assert all(0 <= real <= len(batch["label"]) for batch, real in batches)


def six_pixels(picture: Image) -> Tensor:
    return torch.tensor(np.asarray(picture.resize((2, 3))), dtype=torch.float32).view(3, 1, 2)


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_a_score_does_not_depend_on_the_number_of_processes(
    fashion: Split, world_size: int
) -> None:
    """All other processes run first; then process 0 gathers their predictions."""
    split = first_rows(fashion, 259)  # the second batch has three rows, fewer than 7 processes
    learner = corners(six_pixels)
    examples = Examples(lambda row: learner.for_evaluation((row[0], row[1] % 2)), split)

    def run(gather: Callable[[Tensor], Tensor], *share: int) -> dict[str, float]:
        batches = examples.batches(learner.collate, *share)
        return accuracy(learner, learner.network, batches, "accuracy", CPU, gather)

    gathered: list[list[Tensor]] = [[] for _ in range(1, world_size)]
    for rank, tensors in enumerate(gathered, start=1):
        run(lambda own, tensors=tensors: tensors.append(own) or own, rank, world_size)
    others = iter(zip(*gathered, strict=True)) if gathered else repeat(())
    together = run(lambda own: torch.cat([own, *next(others)]), 0, world_size)
    assert together == run(lambda own: own)
    assert together["count"] == 259
