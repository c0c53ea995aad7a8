"""The null-space ratio of LoRA experts: how much of its inputs an adapter cannot see.

A layer adapted by B A sees of an input x only its projection on the row space of A. The ratio is
the norm of the rest over the norm of x, from 0 to 1. It falls in fine-tuning, as A turns to the
inputs of its task. It needs inputs, but no labels.
Source of the ratio: arXiv 2603.26317, which weights experts by it; here it chooses steps.
Shapes: R rank, I inputs of a layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from hubmerge.choosing.merge_selection import PreparedSelection
from hubmerge.models.loading import Model
from hubmerge.selection.grids import find_grid
from hubmerge.selection.memory_merge import MemoryMerger
from hubmerge.selection.pool import Candidate, Choice, Pool
from hubmerge.selection.proxy import data_free_choice
from hubmerge.selection.row_jobs import CandidateTensors, LocalRows, RowJob
from hubmerge.weights.lora import LowRank

_FALL = 0.95  # of the fall of the ratio from the first candidate to the last
_INPUTS = 64  # of each task


def null_space(prepared: PreparedSelection, merger: MemoryMerger) -> Choice | None:
    """Choose of each task the earliest step with 95 % of the fall; None without LoRA experts."""
    pool = prepared.pool
    if any(_read_factors(pool, experts[-1]) == {} for experts in pool.candidates):
        return None
    rows = LocalRows(pool, merger, prepared.splits)
    indices = []
    for task, (experts, split) in enumerate(zip(pool.candidates, prepared.splits, strict=True)):
        inputs, ratios = tuple(split.row_order[:_INPUTS]), []
        for index, expert in enumerate(experts):
            meter = _RatioMeter(split.loaded_model.model, _read_factors(pool, expert))
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


def null_space_ratio(inputs: Tensor, rows: Tensor) -> Tensor:
    """The ratio of each input [..., I], for orthonormal rows [R, I] that span those of A.

    In float64, as the ratio is a small difference of norms where A sees nearly all.
    """
    values = inputs.double()
    rest = values - values @ rows.T @ rows
    return rest.norm(dim=-1) / values.norm(dim=-1).clamp_min(torch.finfo(torch.float64).tiny)


class _RatioMeter:
    """The mean ratio of the inputs of each adapted layer, from now until `finish`.

    Layers that are not called are left out: torch's attention uses the weights of its output
    projection, and does not call it.
    """

    def __init__(self, model: Model, factors: Mapping[str, Tensor]) -> None:
        self._ratios: dict[str, list[Tensor]] = {name: [] for name in factors}
        self._hooks = []
        for name, factor in factors.items():
            layer = model.module.get_submodule(model.names.module_names[name].rpartition(".")[0])
            basis = torch.linalg.qr(factor.double().T).Q.T
            self._hooks.append(layer.register_forward_pre_hook(partial(self._add, name, basis)))

    def finish(self) -> float:
        """The mean over layers of the mean over their inputs."""
        for hook in self._hooks:
            hook.remove()
        means = [float(torch.cat(ratios).mean()) for ratios in self._ratios.values() if ratios]
        return float(np.mean(means))

    def _add(self, name: str, basis: Tensor, layer: nn.Module, inputs: tuple[Tensor]) -> None:
        self._ratios[name].append(null_space_ratio(inputs[0], basis).flatten())


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
