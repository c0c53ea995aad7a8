"""From rows to a number: what counts, what is kept, and what each of several processes does."""

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
from hubmerge.learners.factory import first_head, make_learner
from hubmerge.learners.learner import Batch
from hubmerge.models.loading import open_model
from hubmerge.tasks.data import Paired, Split, load_split
from hubmerge.tasks.labels import Labels
from hubmerge.tasks.lookup import find_task
from tests.learners.worlds import batch_of, counting, task

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
    """The head looks at each of the two features."""
    return ImageLearner(Classifier(Corner(), LabelHead(10 * torch.eye(2))), plain)


def image(*pixels: float) -> Tensor:
    return torch.tensor(pixels, dtype=torch.float32).expand(3, 1, 2)


def measured(*batches: tuple[Batch, int], **said: Any) -> dict[str, float]:
    learner = corners()
    return accuracy(learner, learner.network, batches, "accuracy", CPU, **said)


def three() -> Batch:
    return batch_of(corners(), (image(1, 0), 0), (image(0, 1), 1), (image(2, 1), 1))


def one() -> Batch:
    return batch_of(corners(), (image(1, 9), 1))


def test_accuracy_over_all_batches_by_hand() -> None:
    # Right, right, wrong, right.
    said = measured((three(), 3), (one(), 1))
    assert said == {"value": 0.75, "count": 4, "stderr": close(0.2165064)}


def test_rows_that_fill_a_batch_up_do_not_count() -> None:
    assert measured((three(), 2), (one(), 0)) == {"value": 1.0, "count": 2, "stderr": 0.0}


def test_the_answers_of_all_processes_count() -> None:
    """Each gathers what all of them told, fillers and all."""
    others = [torch.tensor([[[1, 0]], [[0, 0]], [[1, -1]]]), torch.tensor([[[1, 1]]])]
    told = iter(others)
    said = measured((three(), 3), (one(), 1), gather=lambda own: torch.cat([own, next(told)]))
    # Ours as above; theirs are wrong, right, a filler, and right.
    assert (said["value"], said["count"]) == (close(5 / 7), 7)


@pytest.mark.parametrize("training", [True, False])
def test_it_is_measured_in_evaluation_mode_and_put_back(training: bool) -> None:
    learner = corners()
    network = learner.network
    network.encoder = nn.Sequential(network.encoder, nn.Dropout(p=1.0))
    network.train(training)
    said = accuracy(learner, network, [(one(), 1)], "accuracy", CPU)
    assert said["value"] == 1.0
    assert network.training == network.encoder.training == network.encoder[1].training == training


def test_nothing_is_kept_for_a_way_back() -> None:
    told: list[Tensor] = []
    measured((one(), 1), gather=lambda own: told.append(own) or own)
    assert not told[0].requires_grad
    assert told[0].is_inference()


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_answers_that_are_no_numbers_are_no_guess(wrong: float) -> None:
    with pytest.raises(CheckpointError, match="answers are not numbers"):
        measured((batch_of(corners(), (image(wrong, 1), 0)), 1))


def test_the_mini_base_scores_what_its_makers_measured(fashion: Split) -> None:
    model = open_model(MINI)
    head = first_head(model, fashion.task, fashion.classes)
    learner = make_learner(model, fashion.task, head, augment=False)
    batches = Examples(learner.for_evaluation, fashion).batches(learner.collate)
    said = accuracy(learner, learner.network, batches, "accuracy", CPU)
    assert said["count"] == 1000
    assert said["value"] == close(0.44, abs=0.01)
    assert said["stderr"] == close((said["value"] * (1 - said["value"]) / 1000) ** 0.5)


# Tokens: a world where words are digits, 9 is the end, and after 3 comes 4.


def tokens(*batches: tuple[Batch, int], **said: Any) -> dict[str, float]:
    learner = counting()
    return accuracy(learner, learner.network, batches, "token_accuracy", CPU, **said)


def test_every_token_of_a_target_counts_alike() -> None:
    batch = batch_of(counting(), Paired("2 3", "4 5 7"), Paired("0", "1"))
    # 4 and 5 are foreseen, 7 and the end are not; 1 is, and its end is not.
    assert tokens((batch, 2)) == {"value": 0.5, "count": 6, "stderr": close(0.25**0.5 / 6**0.5)}
    batch = batch_of(counting(), Paired("2 3", "4 5 7"), Paired("0", "1"))
    assert (tokens((batch, 1))["value"], tokens((batch, 1))["count"]) == (0.5, 4)


def test_targets_of_several_processes_are_padded_to_one_length() -> None:
    batch = batch_of(counting(), Paired("0", "1"))

    def gathered(own: Tensor) -> Tensor:
        assert own.tolist() == [[[1, 1], [2, 9]]]
        longer = torch.tensor([[[4, 4], [5, 5], [6, 9]]])
        return torch.cat([nn.functional.pad(own, (0, 0, 0, 1), value=-1), longer])

    said = tokens((batch, 1), gather=gathered)
    assert (said["value"], said["count"]) == (close(3 / 5), 5)


# What is kept in memory.


class Counting:
    """A transform that counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, picture: Any) -> Tensor:
        self.calls += 1
        return torch.zeros(3, 2, 2)


# An image of 12 floats and its label take 56 bytes.
@pytest.mark.parametrize(("keep", "calls"), [(10**9, 300), (0, 600), (100 * 56 + 55, 500)])
def test_rows_are_prepared_once_where_there_is_room(fashion: Split, keep: int, calls: int) -> None:
    transform = Counting()
    learner, some = corners(transform), rows(fashion, 300)
    examples = Examples(learner.for_evaluation, some, keep_bytes=keep)
    for _ in range(2):
        sizes = [(len(batch["label"]), count) for batch, count in examples.batches(learner.collate)]
    assert (sizes, transform.calls) == ([(256, 256), (44, 44)], calls)
    assert examples.kept_bytes <= keep


def rows(split: Split, count: int) -> Split:
    return dataclasses.replace(split, rows=split.rows.select(range(count)))


def test_large_splits_are_not_held(fashion: Split) -> None:
    """Without room only one batch is alive at a time."""
    learner = corners(open_model(MINI).transform(augment=False))
    alive: list[Any] = []

    def consumed() -> Iterator[int]:
        examples = Examples(learner.for_evaluation, fashion, keep_bytes=0)
        for batch, _ in examples.batches(learner.collate):
            alive.append(weakref.ref(batch["image"]))
            yield sum(said() is not None for said in alive)

    assert max(consumed()) <= 2
    assert len(alive) == 4


def test_choices_are_weighed_too() -> None:
    """A row of a prompt and its choices is as large as all of its tokens."""
    learner = counting()
    examples = Examples(learner.for_evaluation, asked(2))
    list(examples.batches(learner.collate))
    # A prompt of one token; targets of one and two, each with its end; the answer.
    assert examples.kept_bytes == 2 * (8 * (1 + 2 + 3) + 8)


def asked(count: int) -> Split:
    """Questions whose prompt is the number of the row."""
    said = task("rank", choices=("1", "1 2"), answer="0")
    numbers = datasets.Dataset.from_dict({"q": [str(row % 10) for row in range(count)]})
    return Split(said, "test", numbers, Labels())


# Several processes.


def numbered(count: int) -> Split:
    said = datasets.Dataset.from_dict({"text": ["x"] * count, "label": list(range(count))})
    names = tuple(map(str, range(count)))
    return Split(task("text"), "test", said, Labels(names, tuple(range(count))))


def labels(examples: Sequence[Any]) -> Batch:
    return {"label": torch.tensor([label for _, label in examples])}


@given(st.integers(1, 200), st.integers(1, 9))
@settings(max_examples=40, deadline=None)
def test_processes_together_see_every_row_once(count: int, world: int) -> None:
    examples = Examples(lambda example: example, numbered(count))
    shares = [list(examples.batches(labels, rank, world)) for rank in range(world)]
    counted = Counter(
        row for share in shares for batch, real in share for row in batch["label"][:real].tolist()
    )
    assert counted == Counter(range(count))
    for each in zip(*shares, strict=True):  # as many batches, and alike in size: all must gather
        assert len({len(batch["label"]) for batch, _ in each}) == 1
        assert all(0 <= real <= len(batch["label"]) for batch, real in each)


def six_pixels(picture: Image) -> Tensor:
    return torch.tensor(np.asarray(picture.resize((2, 3))), dtype=torch.float32).view(3, 1, 2)


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_a_score_does_not_hang_on_the_number_of_processes(fashion: Split, world: int) -> None:
    """All others say first what they tell; then process 0 gathers it."""
    some = rows(fashion, 259)  # the second batch has three rows, fewer than some have processes
    learner = corners(six_pixels)
    examples = Examples(lambda one: learner.for_evaluation((one[0], one[1] % 2)), some)

    def run(gather: Callable[[Tensor], Tensor], *share: int) -> dict[str, float]:
        batches = examples.batches(learner.collate, *share)
        return accuracy(learner, learner.network, batches, "accuracy", CPU, gather)

    told: list[list[Tensor]] = [[] for _ in range(1, world)]
    for rank, said in enumerate(told, start=1):
        run(lambda own, said=said: said.append(own) or own, rank, world)
    each = iter(zip(*told, strict=True)) if told else repeat(())
    together = run(lambda own: torch.cat([own, *next(each)]), 0, world)
    assert together == run(lambda own: own)
    assert together["count"] == 259
