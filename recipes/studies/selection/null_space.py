"""The null-space ratio of LoRA experts: how much of its inputs an adapter cannot see.

The product B A sees of an input x of its layer only the projection on the row space of A. The ratio
is the norm of the rest over the norm of x, from 0 to 1, as in the code of its source. If A turns to
the inputs of its task in fine-tuning, it falls. It needs inputs, but no labels.
Source: arXiv 2603.26317, which chooses weights of a merge by it; here it chooses steps.
Shapes: R rank, I inputs of a layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from hubmerge.choosing.merge_selection import PreparedSelection
from hubmerge.models.loading import Model
from hubmerge.selection.candidate import Candidate
from hubmerge.selection.choice import Choice
from hubmerge.selection.grids import find_grid
from hubmerge.selection.memory_merge import MemoryMerger
from hubmerge.selection.pool import Pool
from hubmerge.selection.proxy import data_free_choice
from hubmerge.selection.row_jobs import CandidateTensors, LocalRows, RowJob
from hubmerge.weights.lora import LowRank

_FALL = 0.95  # of the fall of the ratio from the first candidate to the last
_INPUTS = 64  # of each task


def null_space(prepared: PreparedSelection, merger: MemoryMerger) -> Choice | None:
    """Choose of each task the earliest step with 95 % of the fall; None without LoRA experts."""
    pool = prepared.pool
    if not all(_read_factors(pool, experts[-1]) for experts in pool.candidates):
        return None
    rows = LocalRows(pool, merger, prepared.splits)
    indices = []
    for task, (experts, split) in enumerate(zip(pool.candidates, prepared.splits, strict=True)):
        inputs, ratios = tuple(split.row_order[:_INPUTS]), []
        for index, expert in enumerate(experts):
            factors = _read_factors(pool, expert)
            meter = RatioMeter(_adapted_layers(split.loaded_model.model, factors))
            # The network runs for the inputs of its layers; whether it is right is not read.
            jobs = [RowJob(task, index, 0, inputs)]
            rows.evaluate(expert.key, CandidateTensors(task, index), jobs)
            ratios.append(meter.finish())
        indices.append(fall_index(ratios))
    return data_free_choice(pool, merger, find_grid(prepared.method.name), tuple(indices))


def fall_index(ratios: Sequence[float]) -> int:
    """The first index with 95 % of the fall from the first ratio to the last; 0 if it rises."""
    enough = ratios[0] - _FALL * (ratios[0] - ratios[-1])
    return next(index for index, ratio in enumerate(ratios) if ratio <= enough)


class RatioMeter:
    """The mean null-space ratio of the inputs of adapted layers, from now until `finish`.

    `adapted` has each layer with its A [R, I], of rank R. Layers that are not called are left out:
    torch's attention uses the weights of its output projection, and does not call it.
    """

    def __init__(self, adapted: Iterable[tuple[nn.Module, Tensor]]) -> None:
        self._means: list[list[float]] = []
        self._hooks = []
        for layer, factor in adapted:
            means: list[float] = []
            # Rows [R, I] that are orthonormal and span those of A.
            basis = torch.linalg.qr(factor.double().T).Q.T
            self._hooks.append(layer.register_forward_pre_hook(partial(_add_mean, means, basis)))
            self._means.append(means)

    def finish(self) -> float:
        """The mean over layers of the mean over their inputs, of which every batch has as many."""
        for hook in self._hooks:
            hook.remove()
        return float(np.mean([np.mean(means) for means in self._means if means]))


def _add_mean(means: list[float], basis: Tensor, layer: nn.Module, inputs: tuple[Tensor]) -> None:
    """Add the mean ratio of inputs [..., I]."""
    values = inputs[0].detach().double()
    rest = values - values @ basis.T @ basis
    means.append(float((rest.norm(dim=-1) / values.norm(dim=-1)).mean()))


def _adapted_layers(
    model: Model, factors: Mapping[str, Tensor]
) -> Iterator[tuple[nn.Module, Tensor]]:
    """The layer of each tensor of the base, in the model, with its A."""
    for name, factor in factors.items():
        layer = model.names.module_names[name].rpartition(".")[0]
        yield model.module.get_submodule(layer), factor


def _read_factors(pool: Pool, expert: Candidate) -> Mapping[str, Tensor]:
    """A of every adapted layer [R, I], by the name of the base's tensor; empty if none is one."""
    adapter = pool.task_vector(expert).adapter
    if adapter is None:
        return {}
    return {
        name: torch.from_numpy(adapter.checkpoint.read(change.a).astype(np.float32))
        for name, change in adapter.changes.items()
        if isinstance(change, LowRank)
    }
