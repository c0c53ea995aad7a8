"""Routers that start from data: where the rows of each expert's task lie before each layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from hubmerge.moerging.moe_model import Mixture


@torch.no_grad()
def start_at_centroids(mixture: Mixture, shown: Sequence[Callable[[], object]]) -> None:
    """Set every layer's router to the unit directions from the mean over all to each expert's mean.

    `shown` has one call per expert that runs the model over its rows; the means are of what the
    base alone makes of them, over rows and tokens. An expert at the common mean gets zeros.
    """
    for layer in mixture.layers.values():
        layer.router.zero_()
    means = []
    with _base_alone(mixture):
        for show in shown:
            with _means(mixture) as found:
                show()
            means.append({path: total / count for path, (total, count) in found.items()})
    for path, layer in mixture.layers.items():
        rows = torch.stack([mean[path] for mean in means])
        rows -= rows.mean(dim=0)
        norms = rows.norm(dim=1, keepdim=True)
        layer.router.copy_(torch.where(norms > 0, rows / norms, 0.0))


@contextmanager
def _base_alone(mixture: Mixture) -> Iterator[None]:
    """The experts change nothing while the block runs."""
    scales = {path: layer.scale.clone() for path, layer in mixture.layers.items()}
    for layer in mixture.layers.values():
        layer.scale.zero_()
    try:
        yield
    finally:
        for path, layer in mixture.layers.items():
            layer.scale.copy_(scales[path])


@contextmanager
def _means(mixture: Mixture) -> Iterator[dict[str, tuple[Tensor, int]]]:
    """Layer -> the sum of its inputs [I] and their number, filled while the block runs."""
    found: dict[str, tuple[Tensor, int]] = {}

    def look(path: str) -> Callable[..., None]:
        def hook(module: object, inputs: tuple[Any, ...]) -> None:
            tokens = inputs[0].flatten(0, -2).double()
            total, count = found.get(path, (torch.zeros_like(tokens[0]), 0))
            found[path] = total + tokens.sum(dim=0), count + len(tokens)

        return hook

    handles = [
        layer.register_forward_pre_hook(look(path)) for path, layer in mixture.layers.items()
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
