"""The experts of a mixture as read from files: LoRA factors by the layer that they change.

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
from hubmerge.weights.header import summarize_names
from hubmerge.weights.lora import LowRank

_FUSED_QKV = ".in_proj_weight"
_PLAIN_LORA_HINT = "Use plain LoRA adapters, or extract one from a full expert with --extract-rank."


@dataclass(frozen=True)
class StackedExperts:
    """One layer's experts: lora_A [E, R, I], lora_B [E, O, R], scale [E], and their own ranks."""

    lora_A: Tensor
    lora_B: Tensor
    scale: Tensor
    ranks: tuple[int, ...]


def find_unsupported(adapter: Adapter, label: str) -> Iterator[str]:
    """Every reason why a mergeable adapter cannot be an expert; `label` names it in sentences."""
    others = [name for name, change in adapter.changes.items() if not isinstance(change, LowRank)]
    if others:
        names = summarize_names(others)
        yield f"{label} does more than add a product of two matrices to {names}."
    if adapter.replacements:
        names = summarize_names(adapter.replacements)
        yield f"{label} replaces {names} of the base, which all experts share."


def find_missing_layers(adapters: Mapping[str, Adapter]) -> Iterator[str]:
    """A sentence for every adapter that lacks layers of another: each layer needs all experts."""
    all_tensors = sorted(set[str]().union(*(adapter.changes for adapter in adapters.values())))
    for label, adapter in adapters.items():
        if missing := [name for name in all_tensors if name not in adapter.changes]:
            yield f"{label} does not change {summarize_names(missing)}, and another expert does."


def check_experts(adapters: Mapping[str, Adapter]) -> None:
    """Raise CheckpointError with every reason why these, by name, cannot form one mixture."""
    problems = [p for label, adapter in adapters.items() for p in find_unsupported(adapter, label)]
    raise_together(CheckpointError, [*problems, *find_missing_layers(adapters)], _PLAIN_LORA_HINT)


def factors_by_layer(adapter: Adapter, names: TensorNames) -> dict[str, LowRank]:
    """Layer of the opened model -> the adapter's factors for it.

    A fused attention's matrix of queries, keys and values is the layer `in_proj`.
    """
    factors = {}
    for tensor, change in adapter.changes.items():
        assert isinstance(change, LowRank)
        module_name = names.module_names[tensor]
        path = module_name.removesuffix(
            "_weight" if module_name.endswith(_FUSED_QKV) else ".weight"
        )
        factors[path] = change
    return factors


def stack_experts(adapters: Sequence[Adapter], names: TensorNames) -> dict[str, StackedExperts]:
    """Every layer's experts, in the order of `adapters`, as float32.

    Raises CheckpointError that names all factors with infinite or NaN values.
    """
    by_expert = [factors_by_layer(adapter, names) for adapter in adapters]
    problems, stacked = list[str](), dict[str, StackedExperts]()
    for path in sorted(by_expert[0]):
        parts = [
            _read_factors(adapter, factors[path], problems)
            for adapter, factors in zip(adapters, by_expert, strict=True)
        ]
        stacked[path] = _stack_layer(parts, [factors[path].scale for factors in by_expert])
    raise_together(CheckpointError, problems, "Fetch or train these experts again.")
    return stacked


def _read_factors(adapter: Adapter, change: LowRank, problems: list[str]) -> tuple[Tensor, Tensor]:
    """A [R, I] and B [O, R]."""
    parts = []
    for name in (change.a, change.b):
        values = cast(adapter.checkpoint.read(name), np.dtype(np.float32))
        if not np.isfinite(values).all():
            problems.append(f"{adapter.checkpoint.folder}: {name} has values that are not finite.")
        parts.append(torch.from_numpy(np.ascontiguousarray(values)))
    return parts[0], parts[1]


def _stack_layer(parts: Sequence[tuple[Tensor, Tensor]], scales: Sequence[float]) -> StackedExperts:
    ranks = tuple(len(a) for a, _ in parts)
    (_, inputs), (outputs, _) = parts[0][0].shape, parts[0][1].shape
    lora_A = torch.zeros(len(parts), max(ranks), inputs)
    lora_B = torch.zeros(len(parts), outputs, max(ranks))
    for index, (a, b) in enumerate(parts):
        lora_A[index, : len(a)] = a
        lora_B[index, :, : len(a)] = b
    return StackedExperts(lora_A, lora_B, torch.tensor(scales), ranks)
