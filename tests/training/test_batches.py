"""Batches are the same however many processes, workers and parts share the work."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from hubmerge.errors import DataError
from hubmerge.learners.learner import Batch
from hubmerge.tasks.data import Split
from hubmerge.training.batches import Batches, Share
from tests.training.worlds import learner, spec


def few(split: Split, rows: int) -> Split:
    return dataclasses.replace(split, rows=split.rows.select(range(rows)))


def steps(split: Split, first: int = 1, disturb: bool = False, workers: int = 0, **asked: Any):  # type: ignore[no-untyped-def]
    said = spec(**asked)
    made = []
    for micros in Batches(learner(said, split), split, said, workers=workers).of(
        range(first, said.steps + 1)
    ):
        made.append(micros)
        if disturb:
            torch.rand(3)
    return made


def same(one: list[list[Batch]], two: list[list[Batch]]) -> bool:
    pairs = [(a, b) for x, y in zip(one, two, strict=True) for a, b in zip(x, y, strict=True)]
    return all(a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a) for a, b in pairs)


def test_batches_run_on_over_the_end_of_an_epoch(training: Split) -> None:
    made = steps(few(training, 10), steps=5, batch=4)
    assert [micro["image"].shape for (micro,) in made] == [(4, 3, 28, 28)] * 5
    labels = torch.cat([micro["label"] for (micro,) in made])
    assert sorted(labels[:10].tolist()) == sorted(labels[10:].tolist())


@pytest.mark.parametrize("augment", [False, True])
def test_batches_repeat_whatever_is_drawn_and_wherever_they_begin(
    training: Split, augment: bool
) -> None:
    whole = steps(training, augment=augment)
    assert same(whole, steps(training, disturb=True, augment=augment))
    assert same(whole[2:], steps(training, first=3, augment=augment))
    assert not same(whole, steps(training, seed=1, augment=augment))


def test_workers_change_nothing(training: Split) -> None:
    asked = {"augment": True, "steps": 5}
    assert same(steps(training, **asked), steps(training, workers=2, **asked))


def test_preparing_batches_draws_nothing_from_others(training: Split) -> None:
    said = spec(augment=True)
    batches = Batches(learner(said, training), training, said).of(range(1, 4))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    list(batches)
    assert torch.equal(torch.rand(3), expected)


def test_parts_and_processes_share_a_step(training: Split) -> None:
    said = spec(batch=8, accumulate=2)
    made = learner(said, training)
    shares = [
        list(Batches(made, training, said, Share(rank, 2)).of(range(1, 3))) for rank in (0, 1)
    ]
    assert [len(micro["label"]) for share in shares for step in share for micro in step] == [2] * 8
    (whole,), *_ = steps(training, batch=8)
    shared = torch.cat([micro["label"] for share in shares for micro in share[0]])
    assert sorted(shared.tolist()) == sorted(whole["label"].tolist())


def test_a_crop_belongs_to_its_epoch_and_row(training: Split) -> None:
    rows = few(training, 4)
    (one,), (two,) = steps(rows, steps=2, batch=4, augment=True)
    order = [batch["label"].argsort(stable=True) for batch in (one, two)]
    assert not torch.equal(one["image"][order[0]], two["image"][order[1]])


class Passing:
    """A stream of numbered examples, each epoch turned by its seed."""

    def __init__(self, split: Split) -> None:
        self.split, self.epochs = split, 0

    def epoch(self, seed: int) -> Any:
        self.epochs += 1
        turn = seed % len(self.split)
        for row in range(len(self.split)):
            yield self.split.example((row + turn) % len(self.split))


def test_a_stream_goes_on_where_it_stopped(training: Split) -> None:
    said = spec(steps=6, batch=4)
    stream: Any = Passing(few(training, 10))
    made = Batches(learner(said, training), stream, said)
    whole = list(made.of(range(1, 7)))
    assert stream.epochs == 3
    assert same(whole[3:], list(made.of(range(4, 7))))
    labels = torch.cat([micro["label"] for (micro,) in whole])
    assert sorted(labels[:10].tolist()) == sorted(labels[10:20].tolist())


class Broken:
    """A split of which one row cannot be read."""

    def __init__(self, split: Split) -> None:
        self.split, self.task = split, split.task

    def __len__(self) -> int:
        return len(self.split)

    def example(self, row: int) -> Any:
        if row == 3:
            raise DataError("Row 3 is broken.", "Mend it.")
        return self.split.example(row)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_row_is_told_in_its_own_words(training: Split, workers: int) -> None:
    said = spec(steps=4, batch=4)
    made = Batches(learner(said, training), few(training, 8), said, workers=workers)
    kept: Any = made._split
    kept._kept.split = Broken(few(training, 8))
    with pytest.raises(DataError, match=r"^Row 3 is broken\.$") as error:
        list(made.of(range(1, 5)))
    assert error.value.hint == "Mend it."
