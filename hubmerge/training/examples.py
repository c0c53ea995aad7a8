"""Training batches that are the same whatever the number of workers: randomness has an address."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from hubmerge.models.preprocess import Transform
from hubmerge.tasks.data import Split

Place = tuple[int, int]  # epoch, row


def seed_at(*address: object) -> int:
    """A 63-bit seed that depends on the address alone, such as (seed, "crop", epoch, row)."""
    said = "/".join(map(str, address)).encode()
    return int.from_bytes(hashlib.sha256(said).digest()[:8], "big") >> 1


class Shuffled(Sampler[list[Place]]):
    """`batches` batches of `size` places; each epoch is a permutation seeded by (seed, epoch)."""

    def __init__(self, rows: int, size: int, batches: int, seed: int) -> None:
        self._rows, self._size, self._batches, self._seed = rows, size, batches, seed

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[list[Place]]:
        places = self._places()
        for _ in range(self._batches):
            yield [next(places) for _ in range(self._size)]

    def _places(self) -> Iterator[Place]:
        epoch = 0
        while True:
            generator = torch.Generator().manual_seed(seed_at(self._seed, "order", epoch))
            for row in torch.randperm(self._rows, generator=generator).tolist():
                yield epoch, row
            epoch += 1


class TrainingImages(Dataset[tuple[Tensor, int]]):
    """The image [3, H, W] and label at a place, its random crop seeded by (seed, epoch, row).

    A seed of None says that the transform draws nothing, which saves seeding for every image.
    """

    def __init__(self, split: Split, transform: Transform, seed: int | None) -> None:
        self._rows, self._transform, self._seed = split.rows, transform, seed

    def __getitem__(self, place: Place) -> tuple[Tensor, int]:
        epoch, index = place
        row = self._rows[index]
        if self._seed is None:
            return self._transform(row["image"]), int(row["label"])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_at(self._seed, "crop", epoch, index))
            return self._transform(row["image"]), int(row["label"])
