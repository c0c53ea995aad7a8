"""Ids of merges, known before they are made: hashes of all their inputs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from hubmerge.source import Source


def recipe_id(
    base: Source, experts: tuple[Source, ...], method: str, params: Mapping[str, Any]
) -> str:
    """64 hex digits that are equal for two merges exactly if all their inputs are equal."""
    return next(recipe_ids(base, experts, [encode_method(method, params)]))


def encode_method(method: str, params: Mapping[str, Any]) -> bytes:
    """A method with its parameters, for `recipe_ids`."""
    return json.dumps([method, dict(params)], sort_keys=True).removeprefix("[").encode()


def recipe_ids(
    base: Source, experts: tuple[Source, ...], methods: Iterable[bytes]
) -> Iterator[str]:
    """The recipe id of each encoded method with the same base and experts, in microseconds."""
    parts = sorted((_recipe_part(expert) for expert in experts), key=_recipe_order)
    inputs = json.dumps([base.sha, parts], sort_keys=True).removesuffix("]") + ", "
    start = hashlib.sha256(inputs.encode())
    for method in methods:
        recipe = start.copy()
        recipe.update(method)
        yield recipe.hexdigest()


def averaged_key(keys: Sequence[str], shares: Sequence[float] | None = None) -> str:
    """Return 64 hex digits that identify the mean of these checkpoints, in whatever order."""
    if shares is not None and set(shares) != {1.0}:
        keys = [f"{key} {share!r}" for key, share in zip(keys, shares, strict=True)]
    return hashlib.sha256("\n".join(["averaged", *sorted(keys)]).encode()).hexdigest()


def _recipe_part(expert: Source) -> list[Any]:
    """The fields of an expert that decide the merge; defaults of later fields are left out."""
    default = (expert.keep, expert.intruders) == (1.0, 1.0)
    parts = [expert.key, expert.weight, *(() if default else (expert.keep, expert.intruders))]
    own = [json.dumps(dict(expert.settings), sort_keys=True)] if expert.settings else []
    return [*parts, *own, *_averaged_part(expert)]


def _averaged_part(expert: Source) -> list[Any]:
    if not expert.averaged:
        return []
    shares = {"shares": list(expert.shares)} if set(expert.shares) != {1.0} else {}
    return [{"averaged": [member.key for member in expert.averaged], **shares}]


def _recipe_order(part: list[Any]) -> list[Any]:
    """The part itself, with an average, which cannot be compared, as text."""
    return [json.dumps(value) if isinstance(value, dict) else value for value in part]
