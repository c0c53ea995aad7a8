"""Run passes over the parts of all tensors in several threads, with results in order."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np

from hubmerge.cores import in_order
from hubmerge.merging.bracket import find_thresholds
from hubmerge.merging.deltas import Deltas, sample_ranges
from hubmerge.merging.part_reader import PartReader, Span, part_size, spans
from hubmerge.merging.plan import MergePlan
from hubmerge.merging.softening import Softening
from hubmerge.merging.tensor_merge import tensor_deltas
from hubmerge.progress import Progress
from hubmerge.weights.dtypes import DTYPES, Array, is_float
from hubmerge.weights.tensor_ranges import TensorRanges

T = TypeVar("T")
_QUEUED = 4  # spans that wait for each thread


@dataclass
class PartStream:
    """The parts of a plan's tensors, read by `threads` threads."""

    plan: MergePlan
    softenings: Sequence[Softening]
    pool: ThreadPoolExecutor
    threads: int
    spans: list[Span]
    _local: threading.local = field(default_factory=threading.local)
    _readers: list[PartReader] = field(default_factory=list)

    def run(
        self,
        function: Callable[[Array, Deltas], T],
        chosen: Sequence[Span] | None = None,
        on_span: Callable[[Span], None] | None = None,
    ) -> Iterator[T]:
        """`function(base, deltas)` of every part, in order; `on_span` is called in order, too."""

        def work(span: Span) -> list[T]:
            reader = self._reader()
            with np.errstate(over="ignore", invalid="ignore"):
                return [function(*reader.read(span.name, *block)) for block in span.blocks()]

        spans = self.spans if chosen is None else chosen
        for span, results in in_order(self.pool, work, spans, _QUEUED * self.threads):
            if on_span is not None:
                on_span(span)
            yield from results

    def run_all(self, function: Callable[[Array, Deltas], T], chosen: Sequence[Span]) -> None:
        """Call `function(base, deltas)` for every part of these spans."""
        for _ in self.run(function, chosen):
            pass

    def part_span(self, name: str, start: int) -> Span:
        """The part of a tensor that begins at an entry."""
        step = part_size(self.plan, name)
        return Span(name, start, min(start + step, self.plan.base.index[name].size), step)

    def files(self) -> TensorRanges:
        """The open files of this thread."""
        return self._reader().files

    def sample(self, count: int) -> Iterator[Deltas]:
        """About `count` entries, in every part of the model; copies, which stay valid."""
        reader = PartReader(self.plan, self.softenings)
        sizes = [span.stop - span.start for span in self.spans]
        try:
            for number, start, stop in sample_ranges(sizes, count):
                span = self.spans[number]
                _, deltas = reader.read(span.name, span.start + start, span.start + stop)
                yield replace(deltas, values=[v.copy() for v in deltas.values], base=None)
        finally:
            reader.close()

    def _reader(self) -> PartReader:
        if not hasattr(self._local, "reader"):
            self._local.reader = PartReader(self.plan, self.softenings)
            self._readers.append(self._local.reader)
        reader: PartReader = self._local.reader
        return reader

    def close(self) -> None:
        for reader in self._readers:
            reader.close()


@contextmanager
def open_stream(
    plan: MergePlan, softenings: Sequence[Softening], threads: int
) -> Iterator[PartStream]:
    """A stream whose threads and files are closed when the block ends."""
    with ThreadPoolExecutor(threads, thread_name_prefix="merge") as pool:
        stream = PartStream(plan, softenings, pool, threads, spans(plan, softenings))
        try:
            yield stream
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            stream.close()


@dataclass(frozen=True)
class StreamPasses:
    """The passes of a survey over a stream; see `deltas.ParallelPasses`."""

    stream: PartStream
    progress: Progress

    def __call__(self) -> Iterator[Deltas]:
        plan, softenings = self.stream.plan, self.stream.softenings
        for name, tensor in plan.base.index.items():
            if is_float(tensor.dtype):
                yield tensor_deltas(plan, name, plan.base.read(name), softenings)

    def map(self, function: Callable[[Deltas], T]) -> Iterator[T]:
        index, done = self.stream.plan.base.index, 0
        total = sum(tensor.nbytes for tensor in index.values() if is_float(tensor.dtype))

        def count(span: Span) -> None:
            nonlocal done
            tensor = index[span.name]
            done += (span.stop - span.start) * DTYPES[tensor.dtype].itemsize
            self.progress("survey", done, total)

        return self.stream.run(lambda _, deltas: function(deltas), on_span=count)

    def sample(self, count: int) -> Iterator[Deltas]:
        return self.stream.sample(count)

    def thresholds(
        self, kept_of: Callable[[int], int], only_changed: bool
    ) -> tuple[np.float32, ...] | None:
        return find_thresholds(self, kept_of, only_changed)
