"""What a merge method is: its formula, its parameters, and how a model is cut for it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel

from hubmerge.merging.deltas import DeltaPasses, Deltas
from hubmerge.weights.dtypes import Array

# Pieces of a tensor that a method can merge by themselves: any entries in a row, whole rows (the
# last axis), or only the whole tensor.
Parts = Literal["entries", "rows", "tensors"]


def require_positive_sum(weights: Sequence[float]) -> str:
    """The problem with weights that are normalised: their sum must be positive."""
    return "" if sum(weights) > 0 else "the weights are normalised, so their sum must be positive"


def require_all_positive(weights: Sequence[float]) -> str:
    """The problem with weights of a mean over some of the experts: each must be positive."""
    return "" if min(weights) > 0 else "every weight must be positive, as it counts in a mean"


def require_no_weights(weights: Sequence[float]) -> str:
    """The problem with weights that the method does not use: they must be 1."""
    return "" if set(weights) == {1.0} else "the method uses none, so leave them out"


def is_changed(deltas: Deltas, params: Any, survey: Any) -> bool:
    """Whether training moved these entries in at least one expert."""
    return deltas.changed()


@dataclass(frozen=True)
class Method:
    """A merge method: `combine(deltas, params, survey)` merges the deltas of one tensor.

    `survey(passes, params)`, if there is one, makes passes over the whole model first; its result
    is the third argument of every `combine` (None otherwise). `parts(params)` says with which parts
    of a tensor `combine` may be called, by several threads. After a merge by parts,
    `settle(survey)` returns the final survey and the parts, by tensor and first entry, that must be
    merged again with it. `weight_problem` returns half a
    sentence about what is wrong with the experts' weights, or ""; without it any weights are valid.
    `fewest` and `most` are the numbers of experts that it takes; None is any number.
    `reads(params)` is how often a merge reads its inputs, with those of the survey.
    `is_changed(deltas, params, survey)` is whether it changes a part; by default it keeps entries
    that no expert changed. `model_wide(params)` names the parameters that must be the same in all
    tensors and experts, `expert_wise` those that may differ between experts. `arxiv` is the paper's
    id, or "" for what has none.
    """

    name: str
    title: str
    arxiv: str
    summary: str
    params: type[BaseModel]
    combine: Callable[[Deltas, Any, Any], Array]
    survey: Callable[[DeltaPasses, Any], Any] | None = None
    parts: Callable[[Any], Parts] = lambda params: "tensors"
    settle: Callable[[Any], tuple[Any, list[tuple[str, int]]]] | None = None
    weight_problem: Callable[[Sequence[float]], str] | None = None
    fewest: int = 1
    most: int | None = None
    reads: Callable[[Any], int] = lambda params: 1
    is_changed: Callable[[Deltas, Any, Any], bool] = is_changed
    model_wide: Callable[[Any], Collection[str]] = lambda params: ()
    expert_wise: Collection[str] = ()

    def count_problem(self, count: int) -> str:
        """A sentence if the method cannot merge this number of experts, or ""."""
        if count >= self.fewest and (self.most is None or count <= self.most):
            return ""
        if self.most is None:
            expected = f"at least {self.fewest} experts"
        elif self.fewest == self.most:
            expected = f"exactly {self.fewest} expert{'s' if self.fewest > 1 else ''}"
        else:
            expected = f"{self.fewest} to {self.most} experts"
        return f"{self.name} takes {expected}, and there {'is' if count == 1 else 'are'} {count}."
