"""Learner x rows -> raw accuracy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

import torch
from PIL.Image import Image
from torch import Tensor, nn

from hubmerge.learners.learner import Batch, Example, Learner
from hubmerge.tasks.data import Split
from hubmerge.tasks.metrics import metric

KEEP_BYTES = 500_000_000
_AT_ONCE = {"image": 256, "text": 64, "rank": 16, "target": 16}

Gather = Callable[[Tensor], Tensor]


@torch.inference_mode()
def accuracy(
    learner: Learner,
    network: nn.Module,
    batches: Iterable[tuple[Batch, int]],
    metric_name: str,
    device: torch.device,
    gather: Gather = lambda told: told,
) -> dict[str, float]:
    """Value in [0, 1], count and standard error over all batches, in evaluation mode.

    Of each batch only so many rows count; the rest fill it up. `gather` collects the answers of all
    processes. Raises CheckpointError for answers that are no numbers.
    """
    was_training = network.training
    network.eval()
    measure = metric(metric_name)
    for batch, rows in batches:
        placed = {name: tensor.to(device) for name, tensor in batch.items()}
        predictions, references = learner.answers(network, placed)
        references[rows:] = -1
        told = gather(torch.stack([predictions, references], dim=-1)).flatten(0, -2).cpu()
        told = told[told[:, 1] >= 0]
        measure.add_batch(predictions=told[:, 0], references=told[:, 1])
    network.train(was_training)
    return cast(dict[str, float], measure.compute())


@torch.inference_mode()
def outcomes(
    learner: Learner, network: nn.Module, batches: Iterable[Batch], device: torch.device
) -> list[bool]:
    """Row by row, whether every answer is right, in evaluation mode; for tasks of one answer a row.

    Raises CheckpointError for answers that are no numbers.
    """
    network.eval()
    right: list[bool] = []
    for batch in batches:
        placed = {name: tensor.to(device) for name, tensor in batch.items()}
        predictions, references = learner.answers(network, placed)
        right += (predictions == references).all(dim=-1).tolist()
    return right


class Examples:
    """The rows of a split as the network takes them.

    Each is prepared when first asked for, and kept while all that are kept take at most
    `keep_bytes`.
    """

    def __init__(
        self, prepare: Callable[[Any], Example], split: Split, keep_bytes: int = KEEP_BYTES
    ) -> None:
        self.split, self._prepare = split, prepare
        self.kept_bytes, self._keep_bytes = 0, keep_bytes
        self._kept: dict[int, Example] = {}

    def __getitem__(self, row: int) -> Example:
        if row in self._kept:
            return self._kept[row]
        example = self._prepare(self.split.example(row))
        size = _nbytes(example)
        if self.kept_bytes + size <= self._keep_bytes:
            self.kept_bytes += size
            self._kept[row] = example
        return example

    def batches_of(
        self, rows: Sequence[int], collate: Callable[[Sequence[Example]], Batch]
    ) -> Iterator[Batch]:
        """These rows in their order, as batches."""
        at_once = _AT_ONCE[self.split.task.spec.kind]
        for start in range(0, len(rows), at_once):
            yield collate([self[row] for row in rows[start : start + at_once]])

    def batches(
        self, collate: Callable[[Sequence[Example]], Batch], rank: int = 0, world: int = 1
    ) -> Iterator[tuple[Batch, int]]:
        """All rows in order, as batches and how many rows of each count.

        Of several processes each gets its share of every batch, filled up to the same size.
        """
        at_once = _AT_ONCE[self.split.task.spec.kind]
        for start in range(0, len(self.split), at_once):
            rows = range(start, min(start + at_once, len(self.split)))
            mine = rows[rank::world]
            filled = [*mine, *rows[:1]][: -(-len(rows) // world)]
            yield collate([self[row] for row in filled]), len(mine)


def _nbytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, dict):
        return sum(map(_nbytes, value.values()))
    if isinstance(value, Image):
        return value.width * value.height * len(value.getbands())
    return sum(map(_nbytes, value)) if isinstance(value, (list, tuple)) else 8
