"""Several tasks under one network: the losses and answers of each, as if it were alone."""

from __future__ import annotations

import dataclasses
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hubmerge.errors import UsageError
from hubmerge.learners.classification import Classifier, ImageLearner, LabelHead
from hubmerge.learners.factory import make_learner
from hubmerge.learners.heads import new_head
from hubmerge.learners.learner import Learner, without_network
from hubmerge.learners.multitask import MixedClassifier, MixedLearner
from hubmerge.models.loading import open_model
from hubmerge.specs import Kind
from hubmerge.tasks.data import Paired, Ranked
from hubmerge.tasks.task import Task
from tests.learners.worlds import batch_of, counting, task

Folders = dict[str, Path]


class Twice(nn.Module):
    """Features are twice the input, and calls are counted."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(2.0))
        self.calls = 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        return inputs * self.factor


def linear(*rows: list[float]) -> nn.Linear:
    """A trained head without bias."""
    head = new_head(len(rows[0]), len(rows))
    with torch.no_grad():
        head.weight.copy_(torch.tensor(rows))
    return head


def named(kind: Kind, *names: str) -> list[Task]:
    return [task(kind, name=name) for name in names]


@pytest.fixture
def alone() -> tuple[ImageLearner, ImageLearner]:
    """Two classes by cosine, three by a trained head, over one encoder; rows are features."""
    encoder = Twice()
    heads = LabelHead(2 * torch.eye(2)), linear([1.0, 0.0], [0.0, 1.0], [1.0, 1.0])
    one, other = (ImageLearner(Classifier(encoder, head), plain=torch.tensor) for head in heads)
    return one, other


def encoder_of(alone: tuple[ImageLearner, ImageLearner]) -> Twice:
    encoder = alone[0].network.encoder
    assert isinstance(encoder, Twice)
    return encoder


ROWS: list[Any] = [(1, ([1.0, 2.0], 2)), (0, ([3.0, 4.0], 1)), (1, ([0.5, 0.0], 0))]


def test_logits_by_hand(alone: tuple[ImageLearner, ImageLearner]) -> None:
    mixed = MixedLearner.of(alone, named("image", "one", "other"))
    batch = batch_of(mixed, *ROWS)
    logits = mixed.network(batch["task"], batch["image"])
    # Features (2, 4), (6, 8), (1, 0); the first task has no third class.
    assert logits[0].tolist() == [2.0, 4.0, 6.0]
    assert logits[1].tolist() == pytest.approx([1.2, 1.6, torch.finfo(torch.float32).min])
    assert logits[2].tolist() == [1.0, 0.0, 1.0]
    expected = [
        math.log(math.exp(-4) + math.exp(-2) + 1), math.log(1 + math.exp(-0.4)),
        math.log(2 + math.exp(-1)),
    ]  # fmt: skip
    assert mixed.loss(mixed.network, batch).item() == pytest.approx(sum(expected))
    assert mixed.count(batch) == 3
    predictions, references = mixed.answers(mixed.network, batch)
    assert (predictions.tolist(), references.tolist()) == ([[2], [1], [0]], [[2], [1], [0]])


def test_the_encoder_sees_all_rows_at_once(alone: tuple[ImageLearner, ImageLearner]) -> None:
    mixed, encoder = MixedLearner.of(alone, named("image", "one", "other")), encoder_of(alone)
    mixed.loss(mixed.network, batch_of(mixed, *ROWS))
    assert encoder.calls == 1


def test_gradients_are_those_of_the_tasks_alone(alone: tuple[ImageLearner, ImageLearner]) -> None:
    mixed, (one, other) = MixedLearner.of(alone, named("image", "one", "other")), alone
    factor = encoder_of(alone).factor
    together = mixed.loss(mixed.network, batch_of(mixed, *ROWS))
    apart = one.loss(one.network, batch_of(one, ROWS[1][1])) + other.loss(
        other.network, batch_of(other, ROWS[0][1], ROWS[2][1])
    )
    slopes = [torch.autograd.grad(loss, factor)[0].item() for loss in (together, apart)]
    assert slopes[0] == pytest.approx(slopes[1])


def test_heads_are_frozen_and_the_rest_is_not(alone: tuple[ImageLearner, ImageLearner]) -> None:
    mixed = MixedLearner.of(alone, named("image", "one", "other"))
    trained = [n for n, weight in mixed.network.named_parameters() if weight.requires_grad]
    assert trained == ["encoder.factor"]


def test_a_task_is_evaluated_as_it_is_alone(alone: tuple[ImageLearner, ImageLearner]) -> None:
    mixed = MixedLearner.of(alone, named("image", "one", "other"))
    rows = [([float(n % 5) - 2, float(n % 3) - 1], n % 2) for n in range(12)]
    for number, single in enumerate(alone):
        together = mixed.collate([mixed.at(number)(row) for row in rows])
        said = mixed.answers(mixed.network, together)[0]
        assert torch.equal(said, single.answers(single.network, batch_of(single, *rows))[0])


def opened(folder: Path, kind: Kind, *tasks: Task) -> list[Learner]:
    """One model at several tasks; heads to be trained where the kind has any."""
    model: Any = open_model(folder, kind)
    heads = [linear([1.0] * model.width, [-1.0] * model.width) for _ in tasks] if (
        kind in ("text", "image")
    ) else [None for _ in tasks]  # fmt: skip
    return [make_learner(model, one, head, False) for one, head in zip(tasks, heads, strict=True)]


def test_texts_of_any_task_are_padded_together(folders: Folders) -> None:
    short, long = task("text", name="short", max_tokens=4), task("text", name="long")
    learners = opened(folders["bert"], "text", short, long)
    mixed = MixedLearner.of(learners, [short, long])
    text = "the cat is on the mat and the dog is not"
    batch = batch_of(mixed, (0, (text, 1)), (1, (text, 0)))
    assert batch["attention_mask"].sum(dim=1)[0] == 4 < batch["attention_mask"].sum(dim=1)[1]
    apart = [
        one.loss(one.network, batch_of(one, (text, label))).item()
        for one, label in zip(learners, (1, 0), strict=True)
    ]
    assert mixed.loss(mixed.network, batch).item() == pytest.approx(sum(apart), abs=1e-5)


@pytest.mark.parametrize("family", ["t5", "gpt2"])
def test_prompts_of_several_tasks_are_read_together(folders: Folders, family: str) -> None:
    tasks = [task("rank", name="asked"), task("target", name="told")]
    learners = opened(folders[family], "rank", *tasks)
    mixed = MixedLearner.of(learners, tasks)
    assert [*mixed.network.parameters()] == [*learners[1].network.parameters()]
    rows: list[Any] = [Ranked("is the cat here?", ("Yes", "No"), 1), Paired("the dog", "is fun")]
    batch = mixed.collate([mixed.for_training((n, row), 0) for n, row in enumerate(rows)])
    apart = [
        one.loss(one.network, one.collate([one.for_training(row, 0)])).item()
        for one, row in zip(learners, rows, strict=True)
    ]
    assert mixed.loss(mixed.network, batch).item() == pytest.approx(sum(apart), rel=1e-4)
    assert batch["task"].tolist() == [0, 1]


def test_balance_joins_the_mean_loss_times_its_coefficient() -> None:
    learner, asked = counting(), named("target", "one")
    plain = MixedLearner.of([learner], asked)
    balanced = MixedLearner.of([learner], asked, lambda: torch.tensor(1.5), 0.2)
    batch = plain.collate([plain.for_training((0, Paired("1 2", "3 4")), 0)])
    tokens = plain.count(batch)
    assert tokens == 3  # 3, 4 and the end
    more = balanced.loss(balanced.network, batch) - plain.loss(plain.network, batch)
    assert more.item() / tokens == pytest.approx(0.2 * 1.5)


def test_a_balance_without_coefficient_is_never_asked() -> None:
    def asked() -> Tensor:
        raise AssertionError("asked")

    mixed = MixedLearner.of([counting()], named("target", "one"), asked)
    batch = mixed.collate([mixed.for_training((0, Paired("1 2", "3")), 0)])
    assert mixed.loss(mixed.network, batch).isfinite()


def test_processes_that_prepare_batches_get_rows_only() -> None:
    mixed = MixedLearner.of(
        [dataclasses.replace(counting(), max_tokens=5)], named("target", "one"),
        lambda: torch.zeros(()), 1.0,
    )  # fmt: skip
    sent = pickle.loads(pickle.dumps(without_network(mixed)))  # noqa: S301
    assert (sent.network, sent.balance) == (None, None)
    assert [one.network for one in sent.learners] == [None]
    row = sent.for_training((0, Paired("1 2", "3 4")), 0)
    assert row["task"] == 0


def test_tasks_of_two_families_are_refused(alone: tuple[ImageLearner, ImageLearner]) -> None:
    tasks = [*named("image", "digits", "clothes"), *named("target", "sums")]
    with pytest.raises(UsageError, match=r"images in digits, clothes, prompts in sums") as error:
        MixedLearner.of([*alone, counting()], tasks)
    assert "one family" in error.value.hint


def test_shapes_hang_on_no_row() -> None:
    """So that it compiles once: one task, or none of the widest, gives the same columns."""
    network = MixedClassifier(nn.Identity(), [new_head(2, 5), new_head(2, 3)])
    for asked in ([0, 0], [1, 1], [1, 0]):
        assert network(torch.tensor(asked), torch.ones(2, 2)).shape == (2, 5)
