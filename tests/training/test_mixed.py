"""Two tasks trained as one: their batches, their curve, and going on from any position."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from hubmerge.evaluation import Examples, accuracy
from hubmerge.learners.factory import first_head, make_learner
from hubmerge.learners.learner import Batch, Example
from hubmerge.learners.multitask import MixedLearner
from hubmerge.models.loading import open_model
from hubmerge.specs import TrainSpec
from hubmerge.tasks.data import Split, load_split
from hubmerge.tasks.lookup import find_task
from hubmerge.tasks.multitask import Deck, make_deck
from hubmerge.training.batches import Batches
from hubmerge.training.events import Moment, Position, train
from hubmerge.training.fit import Fit, make_fit
from hubmerge.training.inputs import Data, Watch, Watched
from hubmerge.training.position import read_position, write_position
from tests.training.worlds import MINI, curve, spec, weights

NAMES = ("mini-mnist", "mini-housenum")


@pytest.fixture(scope="module")
def splits() -> list[list[Split]]:
    """The training rows of both tasks, and 60 and 90 to validate on."""
    tasks = [find_task(name) for name in NAMES]
    validation = [load_split(task, "validation") for task in tasks]
    return [
        [load_split(task, "train") for task in tasks],
        [first(split, rows) for split, rows in zip(validation, (60, 90), strict=True)],
    ]


def first(split: Split, rows: int) -> Split:
    return dataclasses.replace(split, rows=split.rows.select(range(rows)))


def learner(asked: TrainSpec, splits: Sequence[Split]) -> MixedLearner:
    model = open_model(MINI)
    each = [
        make_learner(model, one.task, first_head(model, one.task, one.classes), asked.augment)
        for one in splits
    ]
    return MixedLearner.of(each, [one.task for one in splits])


def begun(asked: TrainSpec, splits: list[list[Split]]) -> tuple[Fit, Data]:
    mixed = learner(asked, splits[1])
    watched = [Watched(mixed, Examples(mixed.at(n), one)) for n, one in enumerate(splits[1])]
    data = Data(make_deck(splits[0]), watched)
    return make_fit(mixed, asked, Accelerator(cpu=True)), data


def ran(
    asked: TrainSpec,
    splits: list[list[Split]],
    pushed: tuple[int, ...] = (4,),
    watch: Watch | None = None,
    start: Position | None = None,
) -> tuple[bytes, list[Moment]]:
    fit, data = begun(asked, splits)
    moments = list(train(fit, data, pushed, watch or Watch(), start))
    return weights(fit), moments


@dataclasses.dataclass(frozen=True)
class Echo:
    """A learner whose rows are no more than the seeds that their crops would hang on."""

    network: nn.Module | None = None
    varies: bool = True

    def for_training(self, example: Any, seed: int) -> Example:
        return {"seed": seed}

    def collate(self, examples: Sequence[Example]) -> Batch:
        return {"seed": torch.tensor([example["seed"] for example in examples])}


def seeds(rows: Split | Deck, steps: range = range(1, 2)) -> list[list[int]]:
    echo: Any = Echo()
    made = Batches(echo, rows, spec(seed=7, batch=4)).of(steps)
    return [micro["seed"].tolist() for (micro,) in made]


def test_crops_of_one_task_are_those_of_all_versions(splits: list[list[Split]]) -> None:
    """Computed before a deck could be trained on: published runs were cropped so."""
    assert seeds(first(splits[0][0], 10)) == [
        [3971177974009940906, 7135392460467017965, 3799791540167209567, 3619154581241417976]
    ]


def test_crops_of_a_deck_hang_on_task_epoch_and_row(splits: list[list[Split]]) -> None:
    deck = make_deck([first(split, 4) for split in splits[0]])
    whole = [seed for step in seeds(deck, range(1, 9)) for seed in step]
    assert len(set(whole)) == 32
    assert [seed for step in seeds(deck, range(5, 9)) for seed in step] == whole[16:]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_a_deck_repeat_wherever_they_begin(
    splits: list[list[Split]], workers: int
) -> None:
    asked = spec(augment=True, batch=8)
    deck = make_deck(splits[0])
    whole = list(Batches(learner(asked, splits[0]), deck, asked).of(range(1, 9)))
    made = Batches(learner(asked, splits[0]), deck, asked, workers=workers)
    for (one,), (other,) in zip(whole[4:], made.of(range(5, 9)), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in ("task", "image", "label"))
    tasks = torch.cat([micro["task"] for (micro,) in whole])
    assert 20 < tasks.sum() < 44  # about half of 64


def test_tasks_learn_together(splits: list[list[Split]]) -> None:
    _, moments = ran(spec(steps=40, batch=32, augment=True), splits, (40,))
    before, after = curve(moments)
    assert after.accuracy > before.accuracy + 0.05
    assert list(after.tasks) == list(NAMES)
    assert after.accuracy == pytest.approx(sum(after.tasks.values()) / 2)
    assert after.count == 60 + 90


def test_a_task_is_validated_as_it_is_alone(splits: list[list[Split]]) -> None:
    _, (moment,) = ran(spec(), splits, (0,))
    for split in splits[1]:
        model = open_model(MINI)
        head = first_head(model, split.task, split.classes)
        one = make_learner(model, split.task, head, augment=False)
        batches = Examples(one.for_evaluation, split).batches(one.collate)
        alone = accuracy(one, one.network, batches, "accuracy", torch.device("cpu"))
        assert moment.curve[0].tasks[split.task.name] == alone["value"]


def test_a_mixture_goes_on_from_any_position(splits: list[list[Split]], tmp_path: Path) -> None:
    kept: list[Position] = []
    watch = Watch(keep=lambda step, position: kept.append(position()))
    asked = spec(augment=True, evaluate_every=1)
    whole, moments = ran(asked, splits, watch=watch)
    write_position(tmp_path, "run", 4, kept[1])
    found = read_position(tmp_path, "run")
    assert found is not None
    again, rest = ran(asked, splits, start=found[1])
    assert again == whole
    assert rest[-1].curve == moments[-1].curve


@pytest.mark.parametrize("asked", [{}, {"anneal": "branch", "warmup": 0.0}], ids=str)
def test_what_is_untrained_can_be_pushed(splits: list[list[Split]], asked: Any) -> None:
    _, moments = ran(spec(**asked), splits, (0, 2, 4))
    assert [(m.step, m.pushed) for m in moments] == [(0, True), (2, True), (4, True)]
    _, plain = ran(spec(**asked), splits, (2, 4))
    assert [(m.step, m.pushed) for m in plain] == [(0, False), (2, True), (4, True)]
    assert plain[-1].curve == moments[-1].curve


def test_trackers_are_told_of_every_task_and_what_else_there_is(
    splits: list[list[Split]],
) -> None:
    told: list[tuple[int, Mapping[str, float]]] = []
    watch = Watch(track=lambda said, step: told.append((step, said)), also=lambda: {"entropy": 0.5})
    _, moments = ran(spec(steps=1), splits, (1,), watch)
    (_, first_point), (_, step), (_, last) = told
    assert step.keys() == {"loss", "lr"}
    for said, moment in zip((first_point, last), moments, strict=True):
        point = moment.curve[-1]
        each = {f"validation_accuracy/{name}": point.tasks[name] for name in NAMES}
        assert said == {"validation_accuracy": point.accuracy, **each, "entropy": 0.5}
