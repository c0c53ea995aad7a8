"""Batches do not depend on the number of processes, workers and micro-batches."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from hubmerge.errors import DataError
from hubmerge.learners.learner import Batch
from hubmerge.tasks.data import Split
from hubmerge.training.batches import Batches, ProcessShard
from tests.training.builders import make_learner_of, make_spec


def first_rows(split: Split, rows: int) -> Split:
    return dataclasses.replace(split, rows=split.rows.select(range(rows)))


def steps(split: Split, first: int = 1, disturb: bool = False, workers: int = 0, **settings: Any):  # type: ignore[no-untyped-def]
    spec = make_spec(**settings)
    result = []
    batches = Batches(make_learner_of(spec, split), split, spec, workers=workers)
    for micro_batches in batches.for_steps(range(first, spec.steps + 1)):
        result.append(micro_batches)
        if disturb:
            torch.rand(3)
    return result


def same(first: list[list[Batch]], second: list[list[Batch]]) -> bool:
    pairs = [(a, b) for x, y in zip(first, second, strict=True) for a, b in zip(x, y, strict=True)]
    return all(a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a) for a, b in pairs)


def test_batches_continue_over_the_end_of_an_epoch(training: Split) -> None:
    batches = steps(first_rows(training, 10), steps=5, batch=4)
    assert [micro["image"].shape for (micro,) in batches] == [(4, 3, 28, 28)] * 5
    labels = torch.cat([micro["label"] for (micro,) in batches])
    assert sorted(labels[:10].tolist()) == sorted(labels[10:].tolist())


@pytest.mark.parametrize("augment", [False, True])
def test_batches_repeat_from_any_step_and_global_random_state(
    training: Split, augment: bool
) -> None:
    batches = steps(training, augment=augment)
    assert same(batches, steps(training, disturb=True, augment=augment))
    assert same(batches[2:], steps(training, first=3, augment=augment))
    assert not same(batches, steps(training, seed=1, augment=augment))


def test_workers_change_nothing(training: Split) -> None:
    settings = {"augment": True, "steps": 5}
    assert same(steps(training, **settings), steps(training, workers=2, **settings))


def test_preparing_batches_leaves_the_global_generator_alone(training: Split) -> None:
    spec = make_spec(augment=True)
    batches = Batches(make_learner_of(spec, training), training, spec).for_steps(range(1, 4))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    list(batches)
    assert torch.equal(torch.rand(3), expected)


def test_micro_batches_and_processes_split_a_step(training: Split) -> None:
    spec = make_spec(batch=8, accumulate=2)
    learner = make_learner_of(spec, training)
    shares = [
        list(Batches(learner, training, spec, ProcessShard(rank, 2)).for_steps(range(1, 3)))
        for rank in (0, 1)
    ]
    assert [len(micro["label"]) for share in shares for step in share for micro in step] == [2] * 8
    (expected,), *_ = steps(training, batch=8)
    shared = torch.cat([micro["label"] for share in shares for micro in share[0]])
    assert sorted(shared.tolist()) == sorted(expected["label"].tolist())


def test_a_crop_depends_on_epoch_and_row(training: Split) -> None:
    rows = first_rows(training, 4)
    (first,), (second,) = steps(rows, steps=2, batch=4, augment=True)
    order = [batch["label"].argsort(stable=True) for batch in (first, second)]
    assert not torch.equal(first["image"][order[0]], second["image"][order[1]])


class TurningStream:
    """A stream of a split's rows; each epoch starts at another row, set by its seed."""

    def __init__(self, split: Split) -> None:
        self.split, self.epochs = split, 0

    def epoch(self, seed: int) -> Any:
        self.epochs += 1
        turn = seed % len(self.split)
        for row in range(len(self.split)):
            yield self.split.example((row + turn) % len(self.split))


def test_a_stream_continues_at_any_step(training: Split) -> None:
    spec = make_spec(steps=6, batch=4)
    stream: Any = TurningStream(first_rows(training, 10))
    batches = Batches(make_learner_of(spec, training), stream, spec)
    result = list(batches.for_steps(range(1, 7)))
    assert stream.epochs == 3
    assert same(result[3:], list(batches.for_steps(range(4, 7))))
    labels = torch.cat([micro["label"] for (micro,) in result])
    assert sorted(labels[:10].tolist()) == sorted(labels[10:20].tolist())


class BrokenSplit:
    """A split with one row that cannot be read."""

    def __init__(self, split: Split) -> None:
        self.split, self.task = split, split.task

    def __len__(self) -> int:
        return len(self.split)

    def example(self, row: int) -> Any:
        if row == 3:
            raise DataError("Row 3 is broken.", "Fix it.")
        return self.split.example(row)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_error_of_a_broken_row_is_kept(training: Split, workers: int) -> None:
    spec = make_spec(steps=4, batch=4)
    batches = Batches(
        make_learner_of(spec, training), first_rows(training, 8), spec, workers=workers
    )
    dataset: Any = batches._split
    dataset._examples.split = BrokenSplit(first_rows(training, 8))
    with pytest.raises(DataError, match=r"^Row 3 is broken\.$") as error:
        list(batches.for_steps(range(1, 5)))
    assert error.value.hint == "Fix it."
