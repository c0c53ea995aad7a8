"""Evaluate a learner on a split: accuracy over all rows, or right and wrong row by row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar, cast

import torch
from PIL.Image import Image
from torch import Tensor, nn

from hubmerge.learners.learner import Batch, Example, Learner
from hubmerge.specs import Kind
from hubmerge.tasks.data import Split
from hubmerge.tasks.metrics import make_metric
from hubmerge.tasks.task import Task

CACHE_BYTES = 500_000_000
_BATCH_SIZES = {"image": 256, "text": 64, "rank": 16, "target": 16, "pairs": 64}

_LM_EVAL_ROWS = 64  # of which the harness makes batches of equal lengths

T = TypeVar("T")
Gather = Callable[[Tensor], Tensor]


def batch_size(kind: Kind) -> int:
    """The rows of a batch in evaluation; another number could change bits."""
    return _BATCH_SIZES[kind]


def rows_together(task: Task) -> int:
    """The rows of a task that are measured together; another number could change bits."""
    return _LM_EVAL_ROWS if task.lm_eval is not None else batch_size(task.spec.kind)


@torch.inference_mode()
def accuracy(
    learner: Learner,
    network: nn.Module,
    batches: Iterable[tuple[Batch, int]],
    metric_name: str,
    device: torch.device,
    gather: Gather = lambda rows: rows,
) -> dict[str, float]:
    """Value in [0, 1], count and standard error over all batches, in evaluation mode.

    Of each batch only the first rows count, as many as its number says; the others are padding.
    `gather` collects the predictions of all processes. Raises CheckpointError if predictions are
    not finite.
    """
    was_training = network.training
    network.eval()
    metric = make_metric(metric_name)
    for batch, rows in batches:
        on_device = {name: tensor.to(device) for name, tensor in batch.items()}
        predictions, references = learner.predict(network, on_device)
        references[rows:] = -1
        pairs = gather(torch.stack([predictions, references], dim=-1)).flatten(0, -2).cpu()
        pairs = pairs[pairs[:, 1] >= 0]
        metric.add_batch(predictions=pairs[:, 0], references=pairs[:, 1])
    network.train(was_training)
    return cast(dict[str, float], metric.compute())


@torch.inference_mode()
def correct_rows(
    learner: Learner, network: nn.Module, batches: Iterable[Batch], device: torch.device
) -> list[bool]:
    """Row by row, whether every prediction is correct, in evaluation mode.

    For tasks with one prediction per row. Raises CheckpointError if predictions are not finite.
    """
    network.eval()
    correct: list[bool] = []
    for batch in batches:
        on_device = {name: tensor.to(device) for name, tensor in batch.items()}
        predictions, references = learner.predict(network, on_device)
        correct += (predictions == references).all(dim=-1).tolist()
    return correct


class Examples:
    """The rows of a split, prepared for the network.

    A row is prepared on first use. Prepared rows are cached while all of them take at most
    `cache_bytes`.
    """

    def __init__(
        self, prepare: Callable[[Any], Example], split: Split, cache_bytes: int = CACHE_BYTES
    ) -> None:
        self.split, self._prepare = split, prepare
        self.cached_bytes, self._cache_bytes = 0, cache_bytes
        self._cache: dict[int, Example] = {}
        self._prepared: dict[str, Any] = {}

    def prepare_once(self, name: str, prepare: Callable[[], T]) -> T:
        """What `prepare` returns, which is called once: of all rows, for the same preparation."""
        if name not in self._prepared:
            self._prepared[name] = prepare()
        return cast(T, self._prepared[name])

    def __getitem__(self, row: int) -> Example:
        if row in self._cache:
            return self._cache[row]
        example = self._prepare(self.split.example(row))
        size = _nbytes(example)
        if self.cached_bytes + size <= self._cache_bytes:
            self.cached_bytes += size
            self._cache[row] = example
        return example

    def batches_of(
        self, rows: Sequence[int], collate: Callable[[Sequence[Example]], Batch]
    ) -> Iterator[Batch]:
        """These rows, in the given order, as batches."""
        size = batch_size(self.split.task.spec.kind)
        for start in range(0, len(rows), size):
            yield collate([self[row] for row in rows[start : start + size]])

    def batches(
        self, collate: Callable[[Sequence[Example]], Batch], rank: int = 0, world_size: int = 1
    ) -> Iterator[tuple[Batch, int]]:
        """All rows in order, as batches, each with how many of its rows count.

        With several processes each gets its share of every batch, padded to the same size.
        """
        size = batch_size(self.split.task.spec.kind)
        for start in range(0, len(self.split), size):
            rows = range(start, min(start + size, len(self.split)))
            own = rows[rank::world_size]
            padded = [*own, *rows[:1]][: -(-len(rows) // world_size)]
            yield collate([self[row] for row in padded]), len(own)


def _nbytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, dict):
        # Labels may be the same tensors as the targets.
        return sum(map(_nbytes, {id(part): part for part in value.values()}.values()))
    if isinstance(value, Image):
        return value.width * value.height * len(value.getbands())
    return sum(map(_nbytes, value)) if isinstance(value, (list, tuple)) else 8
