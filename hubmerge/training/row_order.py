"""Which rows a step trains on: addressed by (seed, epoch), never by an order of draws, so that any
step's rows are known without those before it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch

from hubmerge.tasks.multitask import Deck

Place = tuple[int, int]  # epoch, row
_WINDOW = 50  # batches that are sorted by length together


def seed_at(*address: object) -> int:
    """A 63-bit seed that depends on the address alone, such as (seed, "crop", epoch, row)."""
    said = "/".join(map(str, address)).encode()
    return int.from_bytes(hashlib.sha256(said).digest()[:8], "big") >> 1


@dataclass(frozen=True, eq=False)  # by identity, as `lengths` would be hashed at every step
class Order:
    """Every epoch another permutation of `rows` rows, cut into batches without regard to epochs.

    With `lengths`, one per row, rows of like length come together (length bucketing): windows of
    the permutation are sorted by length, and their batches shuffled.
    """

    rows: int
    batch: int
    seed: int
    lengths: tuple[int, ...] | None = None

    def step(self, number: int) -> list[Place]:
        """The places of step `number`, counted from 1."""
        position, end = (number - 1) * self.batch, number * self.batch
        places: list[Place] = []
        while position < end:
            epoch, offset = divmod(position, self.rows)
            chosen = _permuted(self, epoch)[offset : offset + end - position]
            places += [self.place(epoch, row) for row in chosen]
            position += len(chosen)
        return places

    def place(self, epoch: int, row: int) -> Place:
        """Which row it is, and how many times that was trained on before."""
        return epoch, row

    def crop(self, place: Place) -> int:
        """The seed of what is random in a row when it is trained on at this place."""
        return seed_at(self.seed, "crop", *place)


@dataclass(frozen=True, eq=False)
class DeckOrder(Order):
    """Every epoch the cards of a deck, permuted; the epochs of a place are those of its task.

    Each task goes through its own rows by itself, permuted anew each time by seed and task id, and
    an epoch's cards of it are its next rows: so all its rows come equally often.
    """

    deck: Deck = field(kw_only=True)

    def place(self, epoch: int, row: int) -> Place:
        return _dealt(self, epoch)[row]

    def crop(self, place: Place) -> int:
        epoch, (task, row) = place[0], self.deck.whose(place[1])
        return seed_at(self.seed, "crop", self.deck.splits[task].task.id, epoch, row)


@lru_cache(maxsize=4)
def _permuted(order: Order, epoch: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed_at(order.seed, "order", epoch))
    rows: list[int] = torch.randperm(order.rows, generator=generator).tolist()
    if (lengths := order.lengths) is None:
        return rows

    def length(row: int) -> int:
        return lengths[order.place(epoch, row)[1]]

    # What completes the step that the last epoch left open stays in front, what fills no step of
    # its own stays behind: every other step is one batch of like lengths.
    lead = min(-epoch * order.rows % order.batch, order.rows)
    end = lead + (order.rows - lead) // order.batch * order.batch
    batches = [
        batch
        for window in _cut(rows[lead:end], order.batch * _WINDOW)
        for batch in _cut(sorted(window, key=length), order.batch)
    ]
    mixed = torch.randperm(len(batches), generator=generator).tolist()
    return [*rows[:lead], *(row for number in mixed for row in batches[number]), *rows[end:]]


@lru_cache(maxsize=2)
def _dealt(order: DeckOrder, epoch: int) -> list[Place]:
    """What each card of an epoch stands for, before they are permuted."""
    places: list[Place] = []
    tasks = zip(order.deck.splits, order.deck.cards, order.deck.starts, strict=True)
    # By their ids, so that it is the same in whatever order the tasks were given.
    for split, cards, start in sorted(tasks, key=lambda task: task[0].task.id):
        own = Order(len(split), cards, seed_at(order.seed, "task", split.task.id))
        places += [(turn, start + row) for turn, row in own.step(epoch + 1)]
    return places


def _cut(rows: Sequence[int], size: int) -> list[Sequence[int]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]
