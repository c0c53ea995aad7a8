"""Initialise routers from data: from the mean input of each layer on each expert's task."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from hubmerge.moerging.moe_model import MoeModel


@torch.no_grad()
def init_from_centroids(moe: MoeModel, run_tasks: Sequence[Callable[[], object]]) -> None:
    """Set each router row to the unit direction from the mean of all experts to the expert's mean.

    `run_tasks` has one call per expert that runs the model on its task's rows. The means are of the
    layer's inputs over rows and tokens, with experts disabled. An expert whose mean equals the mean
    of all gets zeros.
    """
    for layer in moe.layers.values():
        layer.router.zero_()
    means = []
    with _experts_disabled(moe):
        for run_task in run_tasks:
            with _collect_input_sums(moe) as sums:
                run_task()
            means.append({path: total / count for path, (total, count) in sums.items()})
    for path, layer in moe.layers.items():
        rows = torch.stack([mean[path] for mean in means])
        rows -= rows.mean(dim=0)
        norms = rows.norm(dim=1, keepdim=True)
        layer.router.copy_(torch.where(norms > 0, rows / norms, 0.0))


@contextmanager
def _experts_disabled(moe: MoeModel) -> Iterator[None]:
    """Disable all experts while the block runs."""
    scales = {path: layer.scale.clone() for path, layer in moe.layers.items()}
    for layer in moe.layers.values():
        layer.scale.zero_()
    try:
        yield
    finally:
        for path, layer in moe.layers.items():
            layer.scale.copy_(scales[path])


@contextmanager
def _collect_input_sums(moe: MoeModel) -> Iterator[dict[str, tuple[Tensor, int]]]:
    """Layer -> the sum of its inputs [I] and their number, filled while the block runs."""
    sums: dict[str, tuple[Tensor, int]] = {}

    def make_hook(path: str) -> Callable[..., None]:
        def hook(module: object, inputs: tuple[Any, ...]) -> None:
            tokens = inputs[0].flatten(0, -2).double()
            total, count = sums.get(path, (torch.zeros_like(tokens[0]), 0))
            sums[path] = total + tokens.sum(dim=0), count + len(tokens)

        return hook

    handles = [
        layer.register_forward_pre_hook(make_hook(path)) for path, layer in moe.layers.items()
    ]
    try:
        yield sums
    finally:
        for handle in handles:
            handle.remove()
