"""Training batches: the rows of each step as tensors, shared out over processes and micro-batches.

What a step trains on does not depend on how many processes or data workers share the work.
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
from hubmerge.tasks.multitask import Deck
from hubmerge.tasks.stream import Stream
from hubmerge.training.row_order import DeckOrder, Order, Place, seed_at

Rows = Split | Deck | Stream


@dataclass(frozen=True)
class Share:
    """Which part of each step this process does: process `rank` of `world`."""

    rank: int = 0
    world: int = 1

    def of(self, rows: Sequence[Any], accumulate: int) -> list[Sequence[Any]]:
        """This process's rows of a step, one list per micro-batch."""
        size = len(rows) // accumulate
        micros = [rows[start : start + size] for start in range(0, len(rows), size)]
        return [micro[self.rank :: self.world] for micro in micros]


class Batches:
    """The micro-batches of any steps of a run, prepared by so many worker processes."""

    def __init__(
        self,
        learner: Learner,
        rows: Rows,
        spec: TrainSpec,
        share: Share = Share(),
        workers: int = 0,
    ) -> None:
        self._seed, self._workers, learner = spec.seed, workers, without_network(learner)
        self._split: _OfSplit | None = None
        self._stream: _OfStream | None = None
        if isinstance(rows, Split | Deck):
            self._split = _OfSplit(learner, rows, spec, share)
        else:
            self._stream = _OfStream(learner, rows, spec, share)

    def of(self, steps: range) -> Iterator[list[Batch]]:
        """The micro-batches of each of these steps, in their order."""
        # A generator of its own, as the loader would draw from torch's global one.
        loader = partial(
            DataLoader[list[Batch] | HubmergeError],
            batch_size=None,
            generator=torch.Generator().manual_seed(self._seed),
        )
        if self._split is not None:
            yield from _sound(loader(self._split, sampler=steps, num_workers=self._workers))
        else:
            assert self._stream is not None
            # Several workers would each read the whole stream.
            workers = min(self._workers, 1)
            yield from _sound(loader(self._stream.of(steps), num_workers=workers))


def _sound(items: Iterable[list[Batch] | HubmergeError]) -> Iterator[list[Batch]]:
    """The batches; an error comes as an item, as torch makes a page of text of one that is raised.

    Raises OutOfMemory for a worker that was killed, as systems do when memory ends.
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


class _OfSplit(Dataset[list[Batch] | HubmergeError]):
    """Item n is step n: known by its number, so that any process can make it."""

    def __init__(self, learner: Learner, rows: Split | Deck, spec: TrainSpec, share: Share) -> None:
        self._learner, self._spec, self._share = learner, spec, share
        # What is cropped at random is kept as it is before: at least it is read only once.
        prepare = _decoded if learner.varies else partial(learner.for_training, seed=0)
        self._kept = Examples(prepare, cast(Split, rows))  # asked for examples, nothing else
        lengths = tuple(map(self._length, range(len(rows)))) if spec.bucket else None
        said = len(rows), spec.batch, spec.seed, lengths
        self._order = DeckOrder(*said, deck=rows) if isinstance(rows, Deck) else Order(*said)

    def __getitem__(self, step: int) -> list[Batch] | HubmergeError:
        micros = self._share.of(self._order.step(step), self._spec.accumulate)
        try:
            return [self._learner.collate([self._example(place) for place in m]) for m in micros]
        except HubmergeError as error:
            return error

    def _length(self, row: int) -> int:
        """Tokens of a row, those of its target included."""
        example = self._kept[row]
        return len(example["input_ids"]) + sum(map(len, example.get("targets", ())))

    def _example(self, place: Place) -> Any:
        kept = self._kept[place[1]]
        if not self._learner.varies:
            return kept
        return self._learner.for_training(kept, self._order.crop(place))


def _decoded(example: Any) -> Any:
    """The example with its picture decoded, which PIL puts off until somebody looks."""
    first, second = example
    if isinstance(second, tuple):  # of a deck, behind the number of its task
        return first, _decoded(second)
    return (first.copy() if isinstance(first, Image) else first), second


@dataclass(frozen=True)
class _OfStream(IterableDataset[list[Batch] | HubmergeError]):
    """Steps in order; those before the first wanted are read and passed over."""

    learner: Learner
    stream: Stream
    spec: TrainSpec
    share: Share
    steps: range = range(0)

    def of(self, steps: range) -> _OfStream:
        return replace(self, steps=steps)

    def __iter__(self) -> Iterator[list[Batch] | HubmergeError]:
        examples = islice(self._endless(), (self.steps.start - 1) * self.spec.batch, None)
        try:
            for _ in self.steps:
                step = [
                    self.learner.for_training(example, seed)
                    for example, seed in islice(examples, self.spec.batch)
                ]
                yield [self.learner.collate(m) for m in self.share.of(step, self.spec.accumulate)]
        except HubmergeError as error:
            yield error

    def _endless(self) -> Iterator[tuple[Any, int]]:
        """Examples with the seed of what is random in them, epoch after epoch."""
        for epoch in count():
            seed = seed_at(self.spec.seed, "order", epoch)
            for number, example in enumerate(self.stream.epoch(seed)):
                yield example, seed_at(self.spec.seed, "crop", epoch, number)
