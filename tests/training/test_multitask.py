"""Training on two tasks together: batches, curve, and resuming from any position."""

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
from hubmerge.learners.factory import initial_head, make_learner
from hubmerge.learners.learner import Batch, Example
from hubmerge.learners.multitask import MultiTaskLearner
from hubmerge.models.loading import load_model
from hubmerge.specs import TrainSpec
from hubmerge.tasks.data import Split, load_split
from hubmerge.tasks.lookup import find_task
from hubmerge.tasks.multitask import MultiTaskData, make_multitask_data
from hubmerge.training.batches import Batches
from hubmerge.training.events import CheckpointEvent
from hubmerge.training.fit import Fit, make_fit
from hubmerge.training.inputs import TrainingCallbacks, TrainingData, ValidationTask
from hubmerge.training.loop import train
from hubmerge.training.position import Position, read_position, write_position
from tests.training.builders import MINI, curve, make_spec, weight_bytes

NAMES = ("mini-mnist", "mini-housenum")


@pytest.fixture(scope="module")
def splits() -> list[list[Split]]:
    """The training splits of both tasks, and 60 and 90 validation rows."""
    tasks = [find_task(name) for name in NAMES]
    validation = [load_split(task, "validation") for task in tasks]
    return [
        [load_split(task, "train") for task in tasks],
        [first_rows(split, rows) for split, rows in zip(validation, (60, 90), strict=True)],
    ]


def first_rows(split: Split, rows: int) -> Split:
    return dataclasses.replace(split, rows=split.rows.select(range(rows)))


def learner(spec: TrainSpec, splits: Sequence[Split]) -> MultiTaskLearner:
    model = load_model(MINI)
    learners = [
        make_learner(
            model, split.task, initial_head(model, split.task, split.classes), spec.augment
        )
        for split in splits
    ]
    return MultiTaskLearner.from_learners(learners, [split.task for split in splits])


def make_training(spec: TrainSpec, splits: list[list[Split]]) -> tuple[Fit, TrainingData]:
    multitask = learner(spec, splits[1])
    tasks = [
        ValidationTask(multitask, Examples(multitask.evaluation_of_task(n), split))
        for n, split in enumerate(splits[1])
    ]
    data = TrainingData(make_multitask_data(splits[0]), tasks)
    return make_fit(multitask, spec, Accelerator(cpu=True)), data


def run_training(
    spec: TrainSpec,
    splits: list[list[Split]],
    pushed: tuple[int, ...] = (4,),
    callbacks: TrainingCallbacks | None = None,
    start: Position | None = None,
) -> tuple[bytes, list[CheckpointEvent]]:
    fit, data = make_training(spec, splits)
    events = list(train(fit, data, pushed, callbacks or TrainingCallbacks(), start))
    return weight_bytes(fit), events


@dataclasses.dataclass(frozen=True)
class Echo:
    """A learner that returns the seed of each crop instead of the row."""

    network: nn.Module | None = None
    augments: bool = True

    def for_training(self, example: Any, seed: int) -> Example:
        return {"seed": seed}

    def collate(self, examples: Sequence[Example]) -> Batch:
        return {"seed": torch.tensor([example["seed"] for example in examples])}


def seeds(rows: Split | MultiTaskData, steps: range = range(1, 2)) -> list[list[int]]:
    echo: Any = Echo()
    batches = Batches(echo, rows, make_spec(seed=7, batch=4)).for_steps(steps)
    return [micro["seed"].tolist() for (micro,) in batches]


def test_crop_seeds_of_one_task_stay_the_same(splits: list[list[Split]]) -> None:
    """Values from before multi-task training existed; published runs used these seeds."""
    assert seeds(first_rows(splits[0][0], 10)) == [
        [3971177974009940906, 7135392460467017965, 3799791540167209567, 3619154581241417976]
    ]


def test_multitask_crops_depend_on_task_epoch_and_row(splits: list[list[Split]]) -> None:
    data = make_multitask_data([first_rows(split, 4) for split in splits[0]])
    expected = [seed for step in seeds(data, range(1, 9)) for seed in step]
    assert len(set(expected)) == 32
    assert [seed for step in seeds(data, range(5, 9)) for seed in step] == expected[16:]


@pytest.mark.parametrize("workers", [0, 2])
def test_multitask_batches_repeat_from_any_step(splits: list[list[Split]], workers: int) -> None:
    spec = make_spec(augment=True, batch=8)
    data = make_multitask_data(splits[0])
    expected = list(Batches(learner(spec, splits[0]), data, spec).for_steps(range(1, 9)))
    batches = Batches(learner(spec, splits[0]), data, spec, workers=workers)
    for (first,), (second,) in zip(expected[4:], batches.for_steps(range(5, 9)), strict=True):
        assert all(torch.equal(first[name], second[name]) for name in ("task", "image", "label"))
    tasks = torch.cat([micro["task"] for (micro,) in expected])
    assert 20 < tasks.sum() < 44  # about half of 64


def test_tasks_learn_together(splits: list[list[Split]]) -> None:
    _, events = run_training(make_spec(steps=24, batch=32, augment=True), splits, (24,))
    before, after = curve(events)
    assert after.accuracy > before.accuracy + 0.05
    assert list(after.tasks) == list(NAMES)
    assert after.accuracy == pytest.approx(sum(after.tasks.values()) / 2)
    assert after.count == 60 + 90


def test_a_task_is_validated_like_a_single_task(splits: list[list[Split]]) -> None:
    _, (event,) = run_training(make_spec(), splits, (0,))
    for split in splits[1]:
        model = load_model(MINI)
        head = initial_head(model, split.task, split.classes)
        single = make_learner(model, split.task, head, augment=False)
        batches = Examples(single.for_evaluation, split).batches(single.collate)
        expected = accuracy(single, single.network, batches, "accuracy", torch.device("cpu"))
        assert event.curve[0].tasks[split.task.name] == expected["value"]


def test_multitask_training_resumes_from_any_position(
    splits: list[list[Split]], tmp_path: Path
) -> None:
    positions: list[Position] = []
    callbacks = TrainingCallbacks(save_position=lambda step, position: positions.append(position()))
    spec = make_spec(augment=True, evaluate_every=1)
    expected, events = run_training(spec, splits, callbacks=callbacks)
    write_position(tmp_path, "run", 4, positions[1])
    saved = read_position(tmp_path, "run")
    assert saved is not None
    again, rest = run_training(spec, splits, start=saved[1])
    assert again == expected
    assert rest[-1].curve == events[-1].curve


@pytest.mark.parametrize("settings", [
    pytest.param({}, marks=pytest.mark.slow), {"anneal": "branch", "warmup": 0.0},
], ids=str)  # fmt: skip
def test_step_0_can_be_pushed(splits: list[list[Split]], settings: Any) -> None:
    _, events = run_training(make_spec(**settings), splits, (0, 2, 4))
    assert [(event.step, event.pushed) for event in events] == [(0, True), (2, True), (4, True)]
    _, without_step_0 = run_training(make_spec(**settings), splits, (2, 4))
    assert [(event.step, event.pushed) for event in without_step_0] == [
        (0, False),
        (2, True),
        (4, True),
    ]
    assert without_step_0[-1].curve == events[-1].curve


def test_metrics_of_every_task_and_extra_metrics_are_logged(
    splits: list[list[Split]],
) -> None:
    logged: list[tuple[int, Mapping[str, float]]] = []
    callbacks = TrainingCallbacks(
        log_metrics=lambda metrics, step: logged.append((step, metrics)),
        extra_metrics=lambda: {"entropy": 0.5},
    )
    _, events = run_training(make_spec(steps=1), splits, (1,), callbacks)
    (_, first_point), (_, step), (_, last) = logged
    assert step.keys() == {"loss", "lr"}
    for metrics, event in zip((first_point, last), events, strict=True):
        point = event.curve[-1]
        by_task = {f"validation_accuracy/{name}": point.tasks[name] for name in NAMES}
        assert metrics == {"validation_accuracy": point.accuracy, **by_task, "entropy": 0.5}
