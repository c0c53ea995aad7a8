"""Training batches whose randomness has an address: (seed, what for, epoch, row), never an order
of draws, so that they are the same whatever else was drawn, skipped or kept before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import islice

import torch

from hubmerge.evaluation import Batch, Examples
from hubmerge.models.preprocess import Transform
from hubmerge.models.vision_text import VisionText
from hubmerge.specs import TrainSpec
from hubmerge.tasks.data import Split

Place = tuple[int, int]  # epoch, row


def seed_at(*address: object) -> int:
    """A 63-bit seed that depends on the address alone, such as (seed, "crop", epoch, row)."""
    said = "/".join(map(str, address)).encode()
    return int.from_bytes(hashlib.sha256(said).digest()[:8], "big") >> 1


def training_batches(model: VisionText, split: Split, spec: TrainSpec) -> Iterator[Batch]:
    """The `spec.steps` batches of a run; images are cropped at random if `spec.augment`."""
    transform = model.transform(spec.augment)
    plain = Examples(transform, split)
    places = shuffled(len(split), spec.seed)
    for _ in range(spec.steps):
        chosen = list(islice(places, spec.batch))
        if spec.augment:
            yield cropped(split, transform, spec.seed, chosen)
        else:
            yield plain.batch([row for _, row in chosen])


def shuffled(rows: int, seed: int) -> Iterator[Place]:
    """Places without end: each epoch is another permutation of all rows."""
    epoch = 0
    while True:
        generator = torch.Generator().manual_seed(seed_at(seed, "order", epoch))
        for row in torch.randperm(rows, generator=generator).tolist():
            yield epoch, row
        epoch += 1


def cropped(split: Split, transform: Transform, seed: int, places: Sequence[Place]) -> Batch:
    """The examples at these places, each image cropped by its own seed (seed, epoch, row)."""
    images, labels = [], []
    # torchvision draws from torch's global generator, which is put back as it was.
    with torch.random.fork_rng(devices=[]):
        for epoch, row in places:
            picture, label = split.example(row)
            torch.default_generator.manual_seed(seed_at(seed, "crop", epoch, row))
            images.append(transform(picture))
            labels.append(label)
    return torch.stack(images), torch.tensor(labels)
