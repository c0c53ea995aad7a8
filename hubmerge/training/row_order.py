"""Which rows a step trains on.

Permutations are seeded by (seed, epoch), so the rows of any step are known without computing the
steps before it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch

from hubmerge.tasks.multitask import MultiTaskData

RowAddress = tuple[int, int]  # epoch, row
_BUCKET_BATCHES = 50  # batches whose rows are sorted by length together


def seed_at(*address: object) -> int:
    """A 63-bit seed that depends on the address only, such as (seed, "crop", epoch, row)."""
    text = "/".join(map(str, address)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


@dataclass(frozen=True, eq=False)  # hashed by identity: hashing `lengths` at every step is slow
class RowOrder:
    """A new permutation of `rows` rows every epoch; batches may span two epochs.

    With `lengths`, one per row, rows of similar length share a batch (length bucketing): windows of
    the permutation are sorted by length, and their batches are shuffled.
    """

    rows: int
    batch: int
    seed: int
    lengths: tuple[int, ...] | None = None

    def rows_of_step(self, number: int) -> list[RowAddress]:
        """The row addresses of step `number`, counted from 1."""
        position, end = (number - 1) * self.batch, number * self.batch
        addresses: list[RowAddress] = []
        while position < end:
            epoch, offset = divmod(position, self.rows)
            rows = _permutation(self, epoch)[offset : offset + end - position]
            addresses += [self.address(epoch, row) for row in rows]
            position += len(rows)
        return addresses

    def address(self, epoch: int, index: int) -> RowAddress:
        """The row at this index of an epoch, and how often it was trained on before."""
        return epoch, index

    def crop_seed(self, address: RowAddress) -> int:
        """The seed of the random crop of a row at this address."""
        return seed_at(self.seed, "crop", *address)


@dataclass(frozen=True, eq=False)
class MultiTaskOrder(RowOrder):
    """The row order of multi-task data; an address counts the epochs of the row's own task.

    Each task has its own permutations, seeded by seed and task id. An epoch takes the next
    `rows_per_epoch` rows of each task and permutes them all together. So every row of a task is
    used equally often.
    """

    data: MultiTaskData = field(kw_only=True)

    def address(self, epoch: int, index: int) -> RowAddress:
        return _epoch_addresses(self, epoch)[index]

    def crop_seed(self, address: RowAddress) -> int:
        epoch, (task, row) = address[0], self.data.locate(address[1])
        return seed_at(self.seed, "crop", self.data.splits[task].task.id, epoch, row)


@lru_cache(maxsize=4)
def _permutation(order: RowOrder, epoch: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed_at(order.seed, "order", epoch))
    rows: list[int] = torch.randperm(order.rows, generator=generator).tolist()
    if (lengths := order.lengths) is None:
        return rows

    def length(row: int) -> int:
        return lengths[order.address(epoch, row)[1]]

    # The first rows complete the last step of the previous epoch, and the last rows begin a step
    # that the next epoch completes. All other steps are one batch of similar lengths.
    start = min(-epoch * order.rows % order.batch, order.rows)
    end = start + (order.rows - start) // order.batch * order.batch
    batches = [
        batch
        for window in _chunks(rows[start:end], order.batch * _BUCKET_BATCHES)
        for batch in _chunks(sorted(window, key=length), order.batch)
    ]
    shuffled = torch.randperm(len(batches), generator=generator).tolist()
    return [*rows[:start], *(row for number in shuffled for row in batches[number]), *rows[end:]]


@lru_cache(maxsize=2)
def _epoch_addresses(order: MultiTaskOrder, epoch: int) -> list[RowAddress]:
    """The row addresses of an epoch, before they are permuted."""
    addresses: list[RowAddress] = []
    tasks = zip(order.data.splits, order.data.rows_per_epoch, order.data.offsets, strict=True)
    # Sorted by id, so that the order in which the tasks are given does not matter.
    for split, count, offset in sorted(tasks, key=lambda task: task[0].task.id):
        task_order = RowOrder(len(split), count, seed_at(order.seed, "task", split.task.id))
        rows = task_order.rows_of_step(epoch + 1)
        addresses += [(task_epoch, offset + row) for task_epoch, row in rows]
    return addresses


def _chunks(rows: Sequence[int], size: int) -> list[Sequence[int]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]
