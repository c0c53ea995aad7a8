"""Scored plain merges of the experts of a mixture, found by computing their recipe ids."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

from hubmerge.cards.card_input import CardInput
from hubmerge.merging.registry import METHODS, Method
from hubmerge.merging.settings import with_unrecorded
from hubmerge.recipe_ids import encode_method, recipe_ids
from hubmerge.scores import Score, upcycling

# A score records only the recipe's digest, so the parameters are found by trying common values.
_TRIED_VALUES: Mapping[str, Sequence[float]] = {
    "scale": tuple(hundredths / 100 for hundredths in range(5, 205, 5)),
    "density": tuple(tenths / 10 for tenths in range(1, 11)),
}


@dataclass(frozen=True)
class PlainMerge:
    """A scored merge of the mixture's experts: its method, its parameters and its scores."""

    method: str
    params: Mapping[str, Any]
    scores: Sequence[Score]


def find_plain_merges(card_input: CardInput) -> list[PlainMerge]:
    """For each method, the merge of exactly these experts with the best mean on the same tasks.

    The best is chosen on the split of the card itself. That favours the merge, so gains over it are
    not overstated. Merges with non-default values of other parameters are not found.
    """
    manifest = card_input.manifest
    scored = {score.recipe for score in card_input.scores}
    best: dict[str, tuple[float, PlainMerge]] = {}
    encoded = [method for *_, method in _tried_methods()]
    recipes = recipe_ids(manifest.base, manifest.experts, encoded)
    for (method, params, _), recipe in zip(_tried_methods(), recipes, strict=True):
        scores = card_input.scores_of_recipe(recipe) if recipe in scored else []
        mean = upcycling(scores)
        if mean and mean.value > best.get(method, (-1.0,))[0]:
            best[method] = mean.value, PlainMerge(method, params, scores)
    return [merge for _, merge in best.values()]


@cache
def _tried_methods() -> tuple[tuple[str, Mapping[str, Any], bytes], ...]:
    """Name, parameters and encoding of every method with every parameter that is tried."""
    return tuple(
        (method.name, params, encode_method(method.name, params))
        for method in METHODS.values()
        for params in _parameter_grid(method)
    )


def _parameter_grid(method: Method) -> Iterator[dict[str, Any]]:
    """The method's default parameters, then each combination of tried values.

    Once more with those that older merges recorded, if there are fewer.
    """
    defaults = method.params().model_dump()
    older = {name: v for name, v in defaults.items() if name not in with_unrecorded(method, {})}
    for start in (defaults, older) if older != defaults else (defaults,):
        yield start
        tried = [name for name in _TRIED_VALUES if name in start]
        for values in product(*(_TRIED_VALUES[name] for name in tried)):
            yield {**start, **dict(zip(tried, values, strict=True))}
