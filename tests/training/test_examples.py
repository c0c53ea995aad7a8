"""Batches depend on addresses alone: seed, epoch, row."""

from __future__ import annotations

import dataclasses
from itertools import islice

import torch

from hubmerge.evaluation import Batch, Examples
from hubmerge.models.vision_text import open_model
from hubmerge.specs import TrainSpec
from hubmerge.tasks.data import Split
from hubmerge.training.examples import cropped, seed_at, shuffled, training_batches
from tests.training.worlds import MINI, spec


def few(split: Split, rows: int) -> Split:
    return dataclasses.replace(split, rows=split.rows.select(range(rows)))


def batches(split: Split, asked: TrainSpec, disturb: bool = False) -> list[Batch]:
    said = []
    for batch in training_batches(open_model(MINI), split, asked):
        said.append(batch)
        if disturb:
            torch.rand(3)
    return said


def same(one: list[Batch], two: list[Batch]) -> bool:
    return all(
        torch.equal(a, b) for x, y in zip(one, two, strict=True) for a, b in zip(x, y, strict=True)
    )


def test_each_epoch_is_another_order_of_all_rows() -> None:
    places = list(islice(shuffled(10, seed=0), 30))
    epochs = [[row for epoch, row in places if epoch == number] for number in range(3)]
    assert all(sorted(rows) == list(range(10)) for rows in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert places == list(islice(shuffled(10, seed=0), 30))
    assert places != list(islice(shuffled(10, seed=1), 30))


def test_batches_run_on_over_the_end_of_an_epoch(training: Split) -> None:
    said = batches(few(training, 10), spec(steps=5, batch=4))
    assert [tuple(images.shape) for images, _ in said] == [(4, 3, 28, 28)] * 5
    labels = torch.cat([labels for _, labels in said])
    assert sorted(labels[:10].tolist()) == sorted(labels[10:].tolist())


def test_batches_repeat_whatever_is_drawn_in_between(training: Split) -> None:
    for augment in (False, True):
        asked = spec(augment=augment)
        assert same(batches(training, asked), batches(training, asked, disturb=True))
        assert not same(batches(training, asked), batches(training, spec(seed=1, augment=augment)))


def test_preparing_batches_draws_nothing_from_others(training: Split) -> None:
    prepared = training_batches(open_model(MINI), training, spec(augment=True))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    list(prepared)
    assert torch.equal(torch.rand(3), expected)


def test_a_crop_belongs_to_its_epoch_and_row(training: Split) -> None:
    transform = open_model(MINI).transform(augment=True)
    images, _ = cropped(training, transform, 0, [(0, 7), (1, 7), (0, 8), (0, 7)])
    alone, _ = cropped(training, transform, 0, [(1, 7)])
    assert torch.equal(images[0], images[3])
    assert not torch.equal(images[0], images[1])
    assert torch.equal(images[1], alone[0])


def test_keeping_images_changes_none(training: Split) -> None:
    transform = open_model(MINI).transform(augment=False)
    size = 3 * 28 * 28 * 4
    rows = [3, 1, 4, 1, 5]
    for room in (0, 2 * size, 10**9):
        examples = Examples(transform, training, keep_bytes=room)
        first, second = examples.batch(rows), examples.batch(rows)
        expected = Examples(transform, training, keep_bytes=0).batch(rows)
        assert same([first, second], [expected, expected])
        assert examples.kept_bytes == min(room, 4 * size)


def test_seeds_differ_by_every_part_of_the_address() -> None:
    addresses = [(0, "crop", 1, 2), (0, "crop", 2, 1), (0, "order", 1, 2), (1, "crop", 1, 2)]
    seeds = {seed_at(*address) for address in addresses}
    assert len(seeds) == 4
    assert all(0 <= seed < 2**63 for seed in seeds)
