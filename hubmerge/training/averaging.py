"""Means of the weights along a run, which are evaluated and pushed in place of the weights.

An exponential mean over all updates (as in arXiv 1412.6980 without its bias), or the plain mean at
the last evaluations: LAWA (arXiv 2209.14981).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from hubmerge.errors import UsageError
from hubmerge.specs import TrainSpec
from hubmerge.training.fit import Fit

_COUNT, _MEAN = "average.count", "average.mean"


class WeightAverage:
    """A mean of the trained weights in float32; `state` and `restore` are for resuming.

    `applied` puts the mean into the network for as long as a block lasts.
    """

    def __init__(self, fit: Fit) -> None:
        self._fit, spec = fit, fit.spec
        self._decay, self._window = spec.average_decay, spec.averaged_evaluations or 1
        self._count, self._means = 0, list[dict[str, Tensor]]()
        self._raw: dict[str, Tensor] | None = None

    @torch.no_grad()
    def record_update(self) -> None:
        """Add the weights after an update to an exponential mean.

        The weights of the mean sum to 1 at any time, so that the start has no part in it.
        """
        if self._decay is None:
            return
        self._count += 1
        if not self._means:
            self._means.append(self._weights())
            return
        share = (1 - self._decay) / (1 - self._decay**self._count)
        for name, parameter in self._fit.trained_parameters():
            mean = self._means[0][name]
            mean += (parameter.float() - mean) * share

    def record_evaluation(self) -> None:
        """Add the weights at an evaluation to a mean over the last ones."""
        if self._decay is None:
            self._means = [*self._means, self._weights()][-self._window :]

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the mean into the network; no mean before the first update."""
        if not self._means:
            yield
            return
        self._raw = {name: p.detach().clone() for name, p in self._fit.trained_parameters()}
        self._load(self._mean())
        try:
            yield
        finally:
            self._load(self._raw)
            self._raw = None

    def state(self) -> dict[str, Tensor]:
        """The means, and the weights themselves while the mean is in their place; on the CPU."""
        tensors = {_COUNT: torch.tensor(self._count)}
        for number, mean in enumerate(self._means):
            tensors |= {f"{_MEAN}{number}.{name}": t.cpu().clone() for name, t in mean.items()}
        for name, tensor in (self._raw or {}).items():
            tensors[f"weight.{name}"] = tensor.cpu().clone()
        return tensors

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state` returned."""
        self._count, self._means = int(state[_COUNT]) if _COUNT in state else 0, []
        parameters = dict(self._fit.trained_parameters())
        while f"{_MEAN}{len(self._means)}.{next(iter(parameters))}" in state:
            prefix = f"{_MEAN}{len(self._means)}."
            self._means.append(
                {name: state[prefix + name].to(p.device, copy=True)
                 for name, p in parameters.items()}
            )  # fmt: skip

    def _weights(self) -> dict[str, Tensor]:
        return {n: p.detach().float().clone() for n, p in self._fit.trained_parameters()}

    def _mean(self) -> dict[str, Tensor]:
        first, *others = self._means
        if not others:
            return first
        return {n: torch.stack([t, *(m[n] for m in others)]).mean(0) for n, t in first.items()}

    @torch.no_grad()
    def _load(self, weights: Mapping[str, Tensor]) -> None:
        for name, parameter in self._fit.trained_parameters():
            parameter.copy_(weights[name])


def make_average(fit: Fit) -> WeightAverage | None:
    """The mean that the spec names, None without one; raises UsageError for sharded weights."""
    spec: TrainSpec = fit.spec
    if spec.average is None:
        return None
    if fit.is_sharded:
        raise UsageError(
            "Weights that are sharded over processes cannot be averaged along a run.",
            "Leave --average out; `hubmerge select` averages saved steps.",
        )
    return WeightAverage(fit)
