"""Several tasks with one network: losses and predictions match those of single tasks."""

from __future__ import annotations

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
from hubmerge.learners.multitask import MultiTaskClassifier, MultiTaskLearner
from hubmerge.models.loading import load_model
from hubmerge.specs import Kind
from hubmerge.tasks.data import RankExample, TargetExample
from hubmerge.tasks.task import Task
from tests.learners.builders import batch_of, counting_learner, task

Folders = dict[str, Path]
Pair = tuple[ImageLearner, ImageLearner]


class Twice(nn.Module):
    """An encoder whose features are twice its input; it counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(2.0))
        self.calls = 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        return inputs * self.factor


def linear(*rows: list[float]) -> nn.Linear:
    """A linear head with these weights and zero bias."""
    head = new_head(len(rows[0]), len(rows))
    with torch.no_grad():
        head.weight.copy_(torch.tensor(rows))
    return head


def tasks_of(kind: Kind, *names: str) -> list[Task]:
    return [task(kind, name=name) for name in names]


@pytest.fixture
def single_learners() -> Pair:
    """Learners with a shared encoder: two classes by cosine, three by a linear head."""
    encoder = Twice()
    heads = LabelHead(2 * torch.eye(2)), linear([1.0, 0.0], [0.0, 1.0], [1.0, 1.0])
    first, second = (
        ImageLearner(Classifier(encoder, head), transform=torch.tensor) for head in heads
    )
    return first, second


def encoder_of(single_learners: Pair) -> Twice:
    encoder = single_learners[0].network.encoder
    assert isinstance(encoder, Twice)
    return encoder


ROWS: list[Any] = [(1, ([1.0, 2.0], 2)), (0, ([3.0, 4.0], 1)), (1, ([0.5, 0.0], 0))]


def test_logits_by_hand(single_learners: Pair) -> None:
    learner = MultiTaskLearner.from_learners(single_learners, tasks_of("image", "one", "other"))
    batch = batch_of(learner, *ROWS)
    logits = learner.network(batch["task"], batch["image"])
    # Features (2, 4), (6, 8), (1, 0); the first task has only two classes.
    assert logits[0].tolist() == [2.0, 4.0, 6.0]
    assert logits[1].tolist() == pytest.approx([1.2, 1.6, torch.finfo(torch.float32).min])
    assert logits[2].tolist() == [1.0, 0.0, 1.0]
    expected = [
        math.log(math.exp(-4) + math.exp(-2) + 1), math.log(1 + math.exp(-0.4)),
        math.log(2 + math.exp(-1)),
    ]  # fmt: skip
    assert learner.loss(learner.network, batch).item() == pytest.approx(sum(expected))
    assert learner.count_terms(batch) == 3
    predictions, references = learner.predict(learner.network, batch)
    assert (predictions.tolist(), references.tolist()) == ([[2], [1], [0]], [[2], [1], [0]])


def test_the_encoder_runs_once_for_all_rows(single_learners: Pair) -> None:
    learner = MultiTaskLearner.from_learners(single_learners, tasks_of("image", "one", "other"))
    encoder = encoder_of(single_learners)
    learner.loss(learner.network, batch_of(learner, *ROWS))
    assert encoder.calls == 1


def test_gradients_are_the_sum_over_single_tasks(single_learners: Pair) -> None:
    learner = MultiTaskLearner.from_learners(single_learners, tasks_of("image", "one", "other"))
    first, second = single_learners
    factor = encoder_of(single_learners).factor
    together = learner.loss(learner.network, batch_of(learner, *ROWS))
    apart = first.loss(first.network, batch_of(first, ROWS[1][1])) + second.loss(
        second.network, batch_of(second, ROWS[0][1], ROWS[2][1])
    )
    gradients = [torch.autograd.grad(loss, factor)[0].item() for loss in (together, apart)]
    assert gradients[0] == pytest.approx(gradients[1])


def test_only_heads_are_frozen(single_learners: Pair) -> None:
    learner = MultiTaskLearner.from_learners(single_learners, tasks_of("image", "one", "other"))
    trained = [n for n, weight in learner.network.named_parameters() if weight.requires_grad]
    assert trained == ["encoder.factor"]


def test_a_task_is_evaluated_like_a_single_task(single_learners: Pair) -> None:
    learner = MultiTaskLearner.from_learners(single_learners, tasks_of("image", "one", "other"))
    rows = [([float(n % 5) - 2, float(n % 3) - 1], n % 2) for n in range(12)]
    for number, single in enumerate(single_learners):
        together = learner.collate([learner.evaluation_of_task(number)(row) for row in rows])
        predictions = learner.predict(learner.network, together)[0]
        assert torch.equal(predictions, single.predict(single.network, batch_of(single, *rows))[0])


def load_learners(folder: Path, kind: Kind, *tasks: Task) -> list[Learner]:
    """Learners of one model for several tasks; classification tasks get a linear head."""
    model: Any = load_model(folder, kind)
    heads = [linear([1.0] * model.width, [-1.0] * model.width) for _ in tasks] if (
        kind in ("text", "image")
    ) else [None for _ in tasks]  # fmt: skip
    return [make_learner(model, task, head, False) for task, head in zip(tasks, heads, strict=True)]


def test_texts_of_any_task_are_padded_together(folders: Folders) -> None:
    short, long = task("text", name="short", max_tokens=4), task("text", name="long")
    learners = load_learners(folders["bert"], "text", short, long)
    learner = MultiTaskLearner.from_learners(learners, [short, long])
    text = "the cat is on the mat and the dog is not"
    batch = batch_of(learner, (0, (text, 1)), (1, (text, 0)))
    assert batch["attention_mask"].sum(dim=1)[0] == 4 < batch["attention_mask"].sum(dim=1)[1]
    apart = [
        each.loss(each.network, batch_of(each, (text, label))).item()
        for each, label in zip(learners, (1, 0), strict=True)
    ]
    assert learner.loss(learner.network, batch).item() == pytest.approx(sum(apart), abs=1e-5)


@pytest.mark.parametrize("family", ["t5", "gpt2"])
def test_prompts_of_several_tasks_are_read_together(folders: Folders, family: str) -> None:
    tasks = [task("rank", name="first"), task("target", name="second")]
    learners = load_learners(folders[family], "rank", *tasks)
    learner = MultiTaskLearner.from_learners(learners, tasks)
    assert [*learner.network.parameters()] == [*learners[1].network.parameters()]
    rows: list[Any] = [
        RankExample("is the cat here?", ("Yes", "No"), 1),
        TargetExample("the dog", "is fun"),
    ]
    batch = learner.collate([learner.for_training((n, row), 0) for n, row in enumerate(rows)])
    apart = [
        each.loss(each.network, each.collate([each.for_training(row, 0)])).item()
        for each, row in zip(learners, rows, strict=True)
    ]
    assert learner.loss(learner.network, batch).item() == pytest.approx(sum(apart), rel=1e-4)
    assert batch["task"].tolist() == [0, 1]


def test_the_balance_loss_is_added_to_the_mean_loss() -> None:
    learner, tasks = counting_learner(), tasks_of("target", "one")
    plain = MultiTaskLearner.from_learners([learner], tasks)
    balanced = MultiTaskLearner.from_learners([learner], tasks, lambda: torch.tensor(1.5), 0.2)
    batch = plain.collate([plain.for_training((0, TargetExample("1 2", "3 4")), 0)])
    tokens = plain.count_terms(batch)
    assert tokens == 3  # 3, 4 and end of sequence
    difference = balanced.loss(balanced.network, batch) - plain.loss(plain.network, batch)
    assert difference.item() / tokens == pytest.approx(0.2 * 1.5)


def test_a_balance_loss_without_coefficient_is_never_called() -> None:
    def balance_loss() -> Tensor:
        raise AssertionError("called")

    learner = MultiTaskLearner.from_learners(
        [counting_learner()], tasks_of("target", "one"), balance_loss
    )
    batch = learner.collate([learner.for_training((0, TargetExample("1 2", "3")), 0)])
    assert learner.loss(learner.network, batch).isfinite()


def test_pickling_for_workers_leaves_out_network_and_balance_loss() -> None:
    learner = MultiTaskLearner.from_learners(
        [counting_learner()], tasks_of("target", "one"),
        lambda: torch.zeros(()), 1.0,
    )  # fmt: skip
    sent = pickle.loads(pickle.dumps(without_network(learner)))  # noqa: S301
    assert (sent.network, sent.balance_loss) == (None, None)
    assert [part.network for part in sent.learners] == [None]
    row = sent.for_training((0, TargetExample("1 2", "3 4")), 0)
    assert row["task"] == 0


def test_tasks_of_two_families_are_refused(single_learners: Pair) -> None:
    tasks = [*tasks_of("image", "digits", "clothes"), *tasks_of("target", "sums")]
    with pytest.raises(UsageError, match=r"images in digits, clothes, prompts in sums") as error:
        MultiTaskLearner.from_learners([*single_learners, counting_learner()], tasks)
    assert "one kind" in error.value.hint


def test_shapes_do_not_depend_on_the_tasks_in_a_batch() -> None:
    """So that it compiles only once, logits always have the classes of the widest task."""
    network = MultiTaskClassifier(nn.Identity(), [new_head(2, 5), new_head(2, 3)])
    for tasks in ([0, 0], [1, 1], [1, 0]):
        assert network(torch.tensor(tasks), torch.ones(2, 2)).shape == (2, 5)
