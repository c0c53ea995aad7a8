"""The experts of a mixture as they lie in files: LoRA factors by the layer that they change.

Shapes: E experts, R rank (the largest; lower ones are padded with zeros), I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hubmerge.errors import CheckpointError, raise_together
from hubmerge.models.tensor_names import TensorNames
from hubmerge.weights.adapter import Adapter
from hubmerge.weights.dtypes import cast
from hubmerge.weights.header import listed
from hubmerge.weights.lora import LowRank

_FUSED = ".in_proj_weight"
_EXTRACT = "Use plain LoRA adapters, or extract one from a full expert with --extract-rank."


@dataclass(frozen=True)
class Stack:
    """One layer's experts: lora_A [E, R, I], lora_B [E, O, R], scale [E], their own ranks."""

    lora_A: Tensor
    lora_B: Tensor
    scale: Tensor
    ranks: tuple[int, ...]


def unfit(adapter: Adapter, who: str) -> Iterator[str]:
    """Every reason why an adapter that could be merged is no expert, in sentences about `who`."""
    others = [name for name, change in adapter.changes.items() if not isinstance(change, LowRank)]
    if others:
        yield f"{who} does more than add a product of two matrices to {listed(sorted(others))}."
    if adapter.saved:
        yield f"{who} replaces {listed(sorted(adapter.saved))} of the base, which experts share."


def check_alike(adapters: Mapping[str, Adapter]) -> Iterator[str]:
    """Every adapter that lacks layers which another has: experts stand side by side in each."""
    everything = sorted(set[str]().union(*(adapter.changes for adapter in adapters.values())))
    for who, adapter in adapters.items():
        if lacking := [name for name in everything if name not in adapter.changes]:
            yield f"{who} has no part for {listed(lacking)}, and another expert has."


def check_experts(adapters: Mapping[str, Adapter]) -> None:
    """Raise CheckpointError with everything that keeps these, by name, from being one mixture."""
    problems = [p for who, adapter in adapters.items() for p in unfit(adapter, who)]
    raise_together(CheckpointError, [*problems, *check_alike(adapters)], _EXTRACT)


def layers_of(adapter: Adapter, names: TensorNames) -> dict[str, LowRank]:
    """Layer of the opened model -> the factors that an adapter has for it.

    A fused attention's matrix of queries, keys and values is the layer `in_proj`.
    """
    found = {}
    for tensor, change in adapter.changes.items():
        assert isinstance(change, LowRank)
        inside = names.inside[tensor]
        path = inside.removesuffix("_weight" if inside.endswith(_FUSED) else ".weight")
        found[path] = change
    return found


def stacks(adapters: Sequence[Adapter], names: TensorNames) -> dict[str, Stack]:
    """Every layer's experts, in the order of `adapters`, float32.

    Raises CheckpointError, naming all, for factors that are infinite or NaN.
    """
    layers = [layers_of(adapter, names) for adapter in adapters]
    problems, found = list[str](), dict[str, Stack]()
    for path in sorted(layers[0]):
        parts = [
            _factors(adapter, its[path], problems)
            for adapter, its in zip(adapters, layers, strict=True)
        ]
        found[path] = _stack(parts, [its[path].scale for its in layers])
    raise_together(CheckpointError, problems, "Fetch or train those experts anew.")
    return found


def _factors(adapter: Adapter, change: LowRank, problems: list[str]) -> tuple[Tensor, Tensor]:
    """A [R, I] and B [O, R]."""
    parts = []
    for name in (change.a, change.b):
        values = cast(adapter.checkpoint.read(name), np.dtype(np.float32))
        if not np.isfinite(values).all():
            problems.append(f"{adapter.checkpoint.folder}: {name} is not all numbers.")
        parts.append(torch.from_numpy(np.ascontiguousarray(values)))
    return parts[0], parts[1]


def _stack(parts: Sequence[tuple[Tensor, Tensor]], scales: Sequence[float]) -> Stack:
    ranks = tuple(len(a) for a, _ in parts)
    (_, inputs), (outputs, _) = parts[0][0].shape, parts[0][1].shape
    lora_A = torch.zeros(len(parts), max(ranks), inputs)
    lora_B = torch.zeros(len(parts), outputs, max(ranks))
    for place, (a, b) in enumerate(parts):
        lora_A[place, : len(a)] = a
        lora_B[place, :, : len(a)] = b
    return Stack(lora_A, lora_B, torch.tensor(scales), ranks)
