"""Merge entries on a GPU: the formulas of methods for torch, with the bytes of the CPU.

Parts are read, ranked and written as on the CPU. What a method makes of a part is computed on the
device, in the order of the method's own formula. Each operation is a kernel of its own, so none is
fused with another and rounded once for both; and division is by a tensor, as on a GPU torch
multiplies by the inverse of a number. Random masks are numpy's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from hubmerge.errors import UsageError
from hubmerge.merging.deltas import Deltas
from hubmerge.merging.method import Method
from hubmerge.merging.methods import weighted_sum
from hubmerge.merging.random_masks import random_mask
from hubmerge.merging.sparse import SMALL
from hubmerge.merging.ties import TiesSurvey, elected_sums
from hubmerge.weights.dtypes import Array

# What a method makes of the changes, given as tensors and as the part's `Deltas`.
_Formula = Callable[[Sequence[Any], Deltas, Any, Any], Any]


def check_device(name: str) -> None:
    """Raise UsageError if torch cannot compute on a device such as "cuda" or "cuda:1"."""
    kind, _, number = name.partition(":")
    if kind != "cuda" or not (number.isdecimal() or name == "cuda"):
        raise UsageError(f"--device {name} is not known.", "Give cpu, cuda, or cuda:1 ...")
    import torch

    if not torch.cuda.is_available():
        raise UsageError(
            f"--device {name}: torch finds no CUDA device here.",
            "Leave --device out: a merge on the CPU has the same bytes.",
        )
    if int(number or 0) >= (count := torch.cuda.device_count()):
        raise UsageError(
            f"--device {name}: there are {count} CUDA devices, counted from 0.",
            f"Give cuda:{count - 1}, or cuda for the first one.",
        )


def named_device(name: str | None) -> str | None:
    """The device that merges where `--device` has this name: only CUDA, and only if it is named."""
    return name if name is not None and name.partition(":")[0] == "cuda" else None


def runs_on_device(method: Method, params: Any) -> bool:
    """Whether `on_device` has the formula of a method with these parameters."""
    return method.name in _FORMULAS and method.parts(params) != "tensors"


def on_device(method: Method, params: Any, device: str) -> Method:
    """The method with its formula computed on a device of torch; itself if it has none there."""
    if not runs_on_device(method, params):
        return method
    import torch

    formula = _FORMULAS[method.name]

    def combine(deltas: Deltas, own: Any, survey: Any) -> Array:
        writeable = (v if v.flags.writeable else v.copy() for v in deltas.values)  # as torch asks
        values = [torch.from_numpy(array).to(device) for array in writeable]
        merged: Array = formula(values, deltas, own, survey).cpu().numpy()
        return merged

    return replace(method, combine=combine)


def _average(values: Sequence[Any], deltas: Deltas, params: Any, survey: None) -> Any:
    return _divide(weighted_sum(values, deltas.weights), sum(deltas.weights))


def _task_arithmetic(values: Sequence[Any], deltas: Deltas, params: Any, survey: None) -> Any:
    return params.scale * weighted_sum(values, deltas.weights)


def _dare(values: Sequence[Any], deltas: Deltas, params: Any, survey: None) -> Any:
    return params.scale * weighted_sum(_drop(values, deltas, params), deltas.weights)


def _dare_ties(values: Sequence[Any], deltas: Deltas, params: Any, survey: None) -> Any:
    kept = list(_drop(values, deltas, params))
    return _fuse(kept, deltas.weights, True, params.normalize, params.scale)


def _ties(values: Sequence[Any], deltas: Deltas, params: Any, survey: TiesSurvey) -> Any:
    thresholds = survey.of_tensor(deltas.tensor)
    trimmed = [
        delta * (_magnitudes(delta) >= float(threshold))
        for delta, threshold in zip(values, thresholds, strict=True)
    ]
    sums: Any = elected_sums(trimmed, deltas.weights, params)
    is_positive = survey.is_positive
    positive = sums >= 0 if is_positive else sums > 0
    agreeing = [delta * ((delta > 0) == positive) for delta in trimmed]
    mean = _mean(agreeing, deltas.weights, 0)
    if survey.majority is None:
        cancels = bool(((sums == 0) & (mean != 0)).any())
        signs = int((sums > 0).sum()), int((sums < 0).sum())
        survey.votes.count(deltas, *signs, cancels, is_positive)
    return mean * params.scale


def _ties_mergekit(values: Sequence[Any], deltas: Deltas, params: Any, survey: Any) -> Any:
    kept = [
        delta * (_magnitudes(delta) >= float(smallest))
        for delta, (smallest,) in zip(values, survey[deltas.tensor], strict=True)
    ]
    return _fuse(kept, deltas.weights, True, params.normalize, params.scale)


def _breadcrumbs(
    values: Sequence[Any], deltas: Deltas, params: Any, survey: Any, elect: bool = False
) -> Any:
    kept = []
    for delta, (smallest, largest), own in zip(
        values, survey[deltas.tensor], deltas.of_experts(params), strict=True
    ):
        size = _magnitudes(delta)
        is_crumb = (size >= float(smallest)) & (size <= float(largest))
        kept.append(delta * (is_crumb | (own.density == 1)))
    return _fuse(kept, deltas.weights, elect, params.normalize, params.scale)


def _breadcrumbs_ties(values: Sequence[Any], deltas: Deltas, params: Any, survey: Any) -> Any:
    return _breadcrumbs(values, deltas, params, survey, elect=True)


def _drop(values: Sequence[Any], deltas: Deltas, params: Any) -> Iterator[Any]:
    """`methods.drop_changes`, without rescaling to the L1 norm, which needs whole tensors."""
    import torch

    for delta, sha, own in zip(values, deltas.shas, deltas.of_experts(params), strict=True):
        is_kept = random_mask(own, deltas.tensor, sha, deltas.start, delta.numel())
        kept = delta * torch.from_numpy(is_kept.reshape(delta.shape)).to(delta.device)
        yield kept if own.rescale == "none" else _divide(kept, own.density)


def _fuse(
    kept: Sequence[Any], weights: Sequence[float], elect: bool, normalize: bool, scale: float
) -> Any:
    """`sparse.fuse`."""
    if not elect:
        is_mean = normalize and abs(sum(weights)) > SMALL
        return scale * _divide(weighted_sum(kept, weights), sum(weights) if is_mean else 1.0)
    ones = [1.0] * len(kept)
    weighted = [delta * weight for delta, weight in zip(kept, weights, strict=True)]
    positive = weighted_sum(weighted, ones) >= 0
    agreeing: list[Any] = [delta * ((delta > 0) == positive) for delta in weighted]
    return scale * (
        _mean(agreeing, ones, SMALL, weights) if normalize else weighted_sum(agreeing, ones)
    )


def _mean(
    agreeing: Sequence[Any],
    weights: Sequence[float],
    smallest: float,
    divisors: Sequence[float] | None = None,
) -> Any:
    """The weighted sum over the weights (or `divisors`) of the entries that are not zero."""
    import torch

    total: Any = weighted_sum(agreeing, weights)
    counted = ((delta != 0).double() for delta in agreeing)  # as numpy adds truth values
    weight: Any = weighted_sum(counted, divisors or weights)
    weight = weight.to(total.dtype)
    nothing = weight.abs() < smallest if smallest else weight == 0
    return total / torch.where(nothing, torch.ones_like(weight), weight)


def _divide(total: Any, divisor: float) -> Any:
    import torch

    return total / torch.full_like(total, divisor)


def _magnitudes(delta: Any) -> Any:
    return delta.abs().float()


_FORMULAS: dict[str, _Formula] = {
    "average": _average,
    "task_arithmetic": _task_arithmetic,
    "dare": _dare,
    "dare_ties": _dare_ties,
    "ties": _ties,
    "ties_mergekit": _ties_mergekit,
    "breadcrumbs": _breadcrumbs,
    "breadcrumbs_ties": _breadcrumbs_ties,
}
