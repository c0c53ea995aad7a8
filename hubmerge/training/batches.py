"""Training batches: the rows of each step as tensors, split over processes and micro-batches.

The rows of a step do not depend on the number of processes or data-loading workers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, islice
from typing import Any, cast

import torch
from PIL.Image import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset

from hubmerge.errors import HubmergeError, OutOfMemory
from hubmerge.evaluation import Examples
from hubmerge.learners.learner import Batch, Learner, without_network
from hubmerge.specs import TrainSpec
from hubmerge.tasks.data import Split
from hubmerge.tasks.multitask import MultiTaskData
from hubmerge.tasks.stream import Stream
from hubmerge.training.row_order import MultiTaskOrder, RowAddress, RowOrder, seed_at

TrainingRows = Split | MultiTaskData | Stream


@dataclass(frozen=True)
class ProcessShard:
    """The part of each step that this process computes: process `rank` of `world_size`."""

    rank: int = 0
    world_size: int = 1

    def micro_batches(self, rows: Sequence[Any], accumulate: int) -> list[Sequence[Any]]:
        """This process's rows of a step, one list per micro-batch."""
        size = len(rows) // accumulate
        micro_batches = [rows[start : start + size] for start in range(0, len(rows), size)]
        return [micro_batch[self.rank :: self.world_size] for micro_batch in micro_batches]


class Batches:
    """The micro-batches of any range of steps, prepared by `workers` processes (0: in this one)."""

    def __init__(
        self,
        learner: Learner,
        rows: TrainingRows,
        spec: TrainSpec,
        shard: ProcessShard = ProcessShard(),
        workers: int = 0,
    ) -> None:
        self._seed, self._workers, learner = spec.seed, workers, without_network(learner)
        self._split: _SplitDataset | None = None
        self._stream: _StreamDataset | None = None
        if isinstance(rows, Split | MultiTaskData):
            self._split = _SplitDataset(learner, rows, spec, shard)
        else:
            self._stream = _StreamDataset(learner, rows, spec, shard)

    def for_steps(self, steps: range) -> Iterator[list[Batch]]:
        """The micro-batches of each of these steps, in order."""
        # Without its own generator, the loader would draw from torch's global one.
        loader = partial(
            DataLoader[list[Batch] | HubmergeError],
            batch_size=None,
            generator=torch.Generator().manual_seed(self._seed),
        )
        if self._split is not None:
            yield from _raise_errors(loader(self._split, sampler=steps, num_workers=self._workers))
        else:
            assert self._stream is not None
            # Several workers would each read the whole stream.
            workers = min(self._workers, 1)
            yield from _raise_errors(loader(self._stream.for_steps(steps), num_workers=workers))


def _raise_errors(items: Iterable[list[Batch] | HubmergeError]) -> Iterator[list[Batch]]:
    """Yield the batches and raise the errors among them.

    Errors travel as items because torch wraps one raised in a worker in its whole traceback.
    Raises OutOfMemory if a worker was killed, which is what systems do when memory runs out.
    """
    try:
        for item in items:
            if isinstance(item, HubmergeError):
                raise item
            yield item
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise OutOfMemory(
            "A process that prepares batches was killed.", "Use fewer --workers."
        ) from error


class _SplitDataset(Dataset[list[Batch] | HubmergeError]):
    """Item n is step n; it depends on n alone, so any process can prepare it."""

    def __init__(
        self, learner: Learner, rows: Split | MultiTaskData, spec: TrainSpec, shard: ProcessShard
    ) -> None:
        self._learner, self._spec, self._shard = learner, spec, shard
        # With random crops, the image before cropping is cached, so that it is read only once.
        prepare = _decode_image if learner.augments else partial(learner.for_training, seed=0)
        self._examples = Examples(prepare, cast(Split, rows))  # only `example(row)` is used
        lengths = tuple(map(self._token_count, range(len(rows)))) if spec.bucket else None
        settings = len(rows), spec.batch, spec.seed, lengths
        if isinstance(rows, MultiTaskData):
            self._order: RowOrder = MultiTaskOrder(*settings, data=rows)
        else:
            self._order = RowOrder(*settings)

    def __getitem__(self, step: int) -> list[Batch] | HubmergeError:
        addresses = self._order.rows_of_step(step)
        micro_batches = self._shard.micro_batches(addresses, self._spec.accumulate)
        try:
            return [self._learner.collate(list(map(self._example, m))) for m in micro_batches]
        except HubmergeError as error:
            return error

    def _token_count(self, row: int) -> int:
        """The tokens of a row, including its targets."""
        example = self._examples[row]
        return len(example["input_ids"]) + sum(map(len, example.get("targets", ())))

    def _example(self, address: RowAddress) -> Any:
        example = self._examples[address[1]]
        if not self._learner.augments:
            return example
        return self._learner.for_training(example, self._order.crop_seed(address))


def _decode_image(example: Any) -> Any:
    """The example with its image decoded, which PIL delays until the first access."""
    first, second = example
    if isinstance(second, tuple):  # multi-task data: (task number, example)
        return first, _decode_image(second)
    return (first.copy() if isinstance(first, Image) else first), second


@dataclass(frozen=True)
class _StreamDataset(IterableDataset[list[Batch] | HubmergeError]):
    """Steps in order; steps before the first requested one are read and skipped."""

    learner: Learner
    stream: Stream
    spec: TrainSpec
    shard: ProcessShard
    steps: range = range(0)

    def for_steps(self, steps: range) -> _StreamDataset:
        return replace(self, steps=steps)

    def __iter__(self) -> Iterator[list[Batch] | HubmergeError]:
        examples = islice(self._seeded_examples(), (self.steps.start - 1) * self.spec.batch, None)
        try:
            for _ in self.steps:
                step = [
                    self.learner.for_training(example, seed)
                    for example, seed in islice(examples, self.spec.batch)
                ]
                micro_batches = self.shard.micro_batches(step, self.spec.accumulate)
                yield [self.learner.collate(m) for m in micro_batches]
        except HubmergeError as error:
            yield error

    def _seeded_examples(self) -> Iterator[tuple[Any, int]]:
        """Examples with the seeds of their random crops, epoch after epoch."""
        for epoch in count():
            seed = seed_at(self.spec.seed, "order", epoch)
            for number, example in enumerate(self.stream.epoch(seed)):
                yield example, seed_at(self.spec.seed, "crop", epoch, number)
