"""Plain merges of the experts of a mixture, found among the scores by what they must be called."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from hubmerge.cards.card_input import CardInput
from hubmerge.manifest import recipe_id
from hubmerge.merging.registry import METHODS, Method
from hubmerge.scores import Score, upcycling

# A score tells a recipe's digest alone, so parameters are tried: those that grids and people use.
_TRIED: Mapping[str, Sequence[float]] = {
    "scale": tuple(hundredths / 100 for hundredths in range(5, 205, 5)),
    "density": tuple(tenths / 10 for tenths in range(1, 11)),
}


@dataclass(frozen=True)
class PlainMerge:
    """A merge of the mixture's experts that was scored: its method, its parameters, its scores."""

    method: str
    params: Mapping[str, Any]
    scores: Sequence[Score]


def plain_merges(told: CardInput) -> list[PlainMerge]:
    """Of each method the merge of just these experts with the best mean, scored on the same tasks.

    The best on the very split that is told of: it favours the merge, so no gain over it is made
    larger than it is. Merges whose other parameters are not the defaults are not found.
    """
    manifest = told.manifest
    scored = {score.recipe for score in told.scores}
    found: dict[str, tuple[float, PlainMerge]] = {}
    for method in METHODS.values():
        for params in _params(method):
            recipe = recipe_id(manifest.base, manifest.experts, method.name, params)
            scores = told.of_recipe(recipe) if recipe in scored else []
            mean = upcycling(scores)
            if mean and mean.value > found.get(method.name, (-1.0,))[0]:
                found[method.name] = mean.value, PlainMerge(method.name, params, scores)
    return [merge for _, merge in found.values()]


def _params(method: Method) -> Iterator[dict[str, Any]]:
    """The method's parameters at their defaults, then each combination of what is tried."""
    defaults = method.params().model_dump()
    yield defaults
    tried = [name for name in _TRIED if name in defaults]
    for values in product(*(_TRIED[name] for name in tried)):
        yield {**defaults, **dict(zip(tried, values, strict=True))}
