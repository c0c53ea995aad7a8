"""A choice among the candidates of a pool: a point of the search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

T = TypeVar("T")
Params = tuple[tuple[str, Any], ...]  # name and value, sorted by name


@dataclass(frozen=True)
class Choice:
    """A point of the search: for each task the index and share of its candidate, and parameters.

    An expert of weight 0 is left out. Where `spans`, by default all 1, has a number above 1, so
    many steps up to the index are averaged, with `by_loss` by their training loss.
    """

    indices: tuple[int, ...]
    weights: tuple[float, ...]
    keep: tuple[float, ...]
    intruders: tuple[float, ...]
    params: Params
    spans: tuple[int, ...] = ()
    by_loss: bool = False

    def span(self, task: int) -> int:
        """Return how many steps of a task's expert are averaged."""
        return self.spans[task] if self.spans else 1

    def with_candidate(self, task: int, index: int) -> Choice:
        """Return a copy with another candidate for one task."""
        return self._copy(_replaced(self.indices, task, index), self.weights, self.params)

    def with_weight(self, task: int, weight: float) -> Choice:
        """Return a copy with another weight for one task; 0 leaves its expert out."""
        return self._copy(self.indices, _replaced(self.weights, task, weight), self.params)

    def with_window(self, task: int, index: int, span: int) -> Choice:
        """Return a copy with the mean of `span` steps up to an index for one task."""
        spans = _replaced(self.spans or (1,) * len(self.indices), task, span)
        spans = () if set(spans) == {1} else spans
        return replace(self, indices=_replaced(self.indices, task, index), spans=spans)

    def with_keep(self, task: int, keep: float) -> Choice:
        """Return a copy that keeps another fraction of one expert's changes."""
        return replace(self, keep=_replaced(self.keep, task, keep))

    def with_intruders(self, task: int, intruders: float) -> Choice:
        """Return a copy with another factor on one expert's intruder dimensions."""
        return replace(self, intruders=_replaced(self.intruders, task, intruders))

    def with_params(self, **values: Any) -> Choice:
        """Return a copy with other method parameters.

        A parameter of some layers keeps its name with the filter: `scale[@0:12]`.
        """
        params = as_params({**dict(self.params), **values})
        return self._copy(self.indices, self.weights, params)

    def _copy(self, indices: tuple[int, ...], weights: tuple[float, ...], params: Params) -> Choice:
        # Not replace(), which takes three times as long: a search asks for thousands of neighbours.
        shares = self.keep, self.intruders
        return Choice(indices, weights, *shares, params, self.spans, self.by_loss)


def plain_choice(indices: tuple[int, ...], params: Mapping[str, Any]) -> Choice:
    """Return a choice of these candidates with equal weights, neither trimmed nor damped."""
    ones = (1.0,) * len(indices)
    return Choice(indices, ones, ones, ones, as_params(params))


def as_params(values: Mapping[str, Any]) -> Params:
    """Return parameters as a hashable value; lists, of numbers over the layers, become tuples."""
    pairs = ((n, tuple(v) if isinstance(v, list) else v) for n, v in values.items())
    return tuple(sorted(pairs))


def _replaced(values: tuple[T, ...], index: int, value: T) -> tuple[T, ...]:
    return (*values[:index], value, *values[index + 1 :])
