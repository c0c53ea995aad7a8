"""What mergekit 0.1.5 does with a configuration, in numpy and float64, tensor by tensor.

Written from its documentation and from what it does; where it is wrong, so is this.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from hubmerge.merging.params import DareParams
from hubmerge.merging.random_masks import random_bits, random_mask
from hubmerge.weights.dtypes import Array

Models = Mapping[str, Mapping[str, Array]]
Params = Mapping[str, Any]
_OPTIONAL_BASE = ("nuslerp", "multislerp")
_NO_BASE = ("linear", "karcher", "passthrough")
_DEFAULTS = {
    "density": 1.0, "gamma": 0.01, "epsilon": 0.15, "lambda": 1.0, "scale": 1.0,
    "select_topk": 1.0, "filter_wise": False, "nuslerp_flatten": True, "max_iter": 10, "tol": 1e-5,
}  # fmt: skip
_SHARED = ("normalize", "rescale", "lambda", "t", "select_topk", "filter_wise", "nuslerp_flatten",
           "max_iter", "tol")  # fmt: skip
_OWN = ("weight", "density", "gamma", "epsilon", "scale")


def reference(config: Mapping[str, Any], models: Models, shas: Mapping[str, str]) -> dict[str, Any]:
    """The merge of models by their names in the configuration; `shas` decide what is dropped."""
    base, slices = config.get("base_model"), config.get("slices")
    if slices is None:
        sources = [dict(entry) for entry in config["models"]]
        if base and base not in [source["model"] for source in sources]:
            sources.append({"model": base})
        layers = _count_layers(models[sources[0]["model"]])
        slices = [{"sources": [{**source, "layer_range": [0, layers]} for source in sources]}]
    found: dict[str, Any] = {}

    def merge(part: Mapping[str, Any], depth: float, name: str, names: Sequence[str]) -> None:
        inputs = []
        for source, own in zip(part["sources"], names, strict=True):
            levels = [source.get("parameters"), part.get("parameters"), config.get("parameters")]
            params = {key: _look_up(key, levels, own, depth) for key in _OWN}
            values = models[source["model"]][own].astype(np.float64)
            inputs.append((source["model"], values, params))
        levels = [part.get("parameters"), config.get("parameters")]
        shared = {key: _look_up(key, levels, name, depth) for key in _SHARED}
        found[name] = _merge_tensor(config["merge_method"], base, inputs, shared, name, shas)

    for name in models[slices[0]["sources"][0]["model"]]:
        if _layer(name) is None and "embed" in name:
            merge(slices[0], 0.0, name, [name] * len(slices[0]["sources"]))
    number = 0
    for part in slices:
        start, stop = part["sources"][0]["layer_range"]
        for index in range(stop - start):
            depth = index / (stop - start - 1) if stop - start > 1 else 1.0
            first = part["sources"][0]
            for name in models[first["model"]]:
                if _layer(name) == start + index:
                    names = [
                        _in_layer(name, source["layer_range"][0] + index)
                        for source in part["sources"]
                    ]
                    merge(part, depth, _in_layer(name, number), names)
            number += 1
    for name in models[slices[-1]["sources"][0]["model"]]:
        if _layer(name) is None and "embed" not in name:
            merge(slices[-1], 0.0, name, [name] * len(slices[-1]["sources"]))
    return found


def _layer(name: str) -> int | None:
    match = re.search(r"layers\.(\d+)\.", name)
    return int(match[1]) if match else None


def _in_layer(name: str, layer: int) -> str:
    return re.sub(r"layers\.\d+\.", f"layers.{layer}.", name)


def _count_layers(model: Mapping[str, Array]) -> int:
    return max(layer for layer in map(_layer, model) if layer is not None) + 1


def _look_up(key: str, levels: Sequence[Params | None], name: str, depth: float) -> Any:
    for level in levels:
        setting = (level or {}).get(key)
        if setting is None:
            continue
        conditions = setting if isinstance(setting, list) else [setting]
        if not any(isinstance(item, dict) for item in conditions):
            return _at(setting, depth)
        for item in conditions:
            text = item.get("filter")
            if text in (None, "*") or text in name:
                return _at(item["value"], depth)
    return _DEFAULTS.get(key)


def _at(value: Any, depth: float) -> Any:
    if not isinstance(value, list):
        return value if isinstance(value, bool) else float(value)
    place = depth * (len(value) - 1)
    return float(np.interp(place, range(len(value)), [float(number) for number in value]))


def _merge_tensor(
    method: str, base_model: str | None, inputs: Any, shared: Params, name: str, shas: Any
) -> Array:
    base = next((values for model, values, _ in inputs if model == base_model), None)
    others = inputs if method in _NO_BASE else [i for i in inputs if i[0] != base_model]
    values, params = [v for _, v, _ in others], [p for *_, p in others]
    weights = [p["weight"] for p in params]
    if method == "passthrough":
        return values[0] * params[0]["scale"]
    if method == "linear":
        total = sum(w * v for w, v in zip(weights, values, strict=True))
        return total if shared["normalize"] is False else total / sum(weights)
    if method == "karcher":
        return _karcher(values, int(shared["max_iter"]), shared["tol"])
    if method in _OPTIONAL_BASE:
        origin = 0 if base is None else base
        changes = [v - origin for v in values]
        if method == "nuslerp":
            share = weights[1] / sum(weights)
            return origin + _nuslerp(changes, share, shared["nuslerp_flatten"])
        return origin + _multislerp(changes, np.array(weights) / sum(weights))
    assert base is not None
    deltas = [v - base for v in values]
    if method == "slerp":
        return _slerp(base, values[0], shared["t"])
    if method == "model_stock":
        return base + _model_stock(deltas, shared["filter_wise"])
    if method == "sce":
        return base + _sce(deltas, shared["select_topk"])
    rescales = shared["rescale"]
    kept = [
        _sparsify(method, delta, p, rescales, name, shas.get(model, ""))
        for delta, p, (model, *_) in zip(deltas, params, others, strict=True)
    ]
    return base + shared["lambda"] * _fuse(method, kept, np.array(weights), shared["normalize"])


def _fuse(method: str, kept: Sequence[Array], weights: Array, normalize: bool | None) -> Array:
    stacked = np.stack(kept)
    shaped = weights.reshape(-1, *[1] * (stacked.ndim - 1))
    weighted = stacked * shaped
    if normalize is None:
        normalize = method in ("ties", "della")
    if method in ("task_arithmetic", "dare_linear", "breadcrumbs", "della_linear"):
        return weighted.sum(0) / (weights.sum() if normalize else 1)
    mask = np.sign(weighted) == np.where(weighted.sum(0) >= 0, 1, -1)
    divisor = (shaped * mask).sum(0)
    divisor[divisor == 0] = 1
    return (weighted * mask).sum(0) / (divisor if normalize else 1)


def _sparsify(
    method: str, delta: Array, params: Params, rescale: bool | None, name: str, sha: str
) -> Array:
    density, size = params["density"], delta.size
    if density == 1 or method == "task_arithmetic":
        return delta
    order = np.argsort(np.abs(delta).reshape(-1), kind="stable")
    mask = np.zeros(size)
    if method == "ties":
        mask[order[size - max(1, int(density * size)) :]] = 1
    elif method.startswith("breadcrumbs"):
        kept, top = int(density * size), int(params["gamma"] * size)
        low = max(0, size - kept - top)
        mask[order[low : low + kept]] = 1
    else:
        likely = np.full(delta.shape, density)
        if method.startswith("della"):
            rows = np.abs(np.atleast_2d(delta))
            ranks = rows.argsort(1, kind="stable").argsort(1, kind="stable")
            likely = (
                density - params["epsilon"] + 2 * params["epsilon"] * ranks / (rows.shape[1] - 1)
            )
        # Ours, as mergekit draws from whatever state its generator is in.
        if method.startswith("della"):
            mask = random_bits(0, name, sha, 0, size) < likely.reshape(-1) * 2**32
        else:
            mask = random_mask(DareParams(density=density), name, sha, 0, size)
    result = delta * mask.reshape(delta.shape)
    if rescale is None:
        rescale = method.startswith(("dare", "della"))
    if not rescale or not result.any():
        return result
    return result * (np.abs(delta).sum() / np.abs(result).sum())


def _slerp(start: Array, end: Array, share: float) -> Array:
    cosine = np.vdot(start, end) / (np.linalg.norm(start) * np.linalg.norm(end))
    if abs(cosine) > 0.9995:
        return (1 - share) * start + share * end
    angle = np.arccos(cosine)
    return (np.sin((1 - share) * angle) * start + np.sin(share * angle) * end) / np.sin(angle)


def _nuslerp(pair: Sequence[Array], share: float, flatten: bool) -> Array:
    shape = pair[0].shape
    first, second = (v.reshape(-1) if flatten else v for v in pair)
    units = [v / np.linalg.norm(v, axis=-1, keepdims=True).clip(1e-7) for v in (first, second)]
    angle = np.arccos((units[0] * units[1]).sum(-1, keepdims=True).clip(-1, 1))
    result = np.sin((1 - share) * angle) * first + np.sin(share * angle) * second
    return (result / np.sin(angle)).reshape(shape)


def _multislerp(changes: Sequence[Array], weights: Array) -> Array:
    norms = np.array([np.linalg.norm(change) for change in changes])
    units = [change / (norm + 1e-8) for change, norm in zip(changes, norms, strict=True)]
    mean = sum(w * unit for w, unit in zip(weights, units, strict=True))
    return np.asarray(mean / np.linalg.norm(mean) * (norms * weights).sum())


def _karcher(values: Sequence[Array], most: int, tolerance: float) -> Array:
    norms = [np.linalg.norm(v) for v in values]
    units = [v / norm for v, norm in zip(values, norms, strict=True)]
    mean = sum(units) / np.linalg.norm(sum(units))
    for _ in range(most):
        step = np.zeros_like(mean)
        for unit in units:
            cosine = float(np.clip(np.vdot(mean, unit), -1, 1))
            angle = np.arccos(cosine)
            if angle >= tolerance:
                step += angle / np.sin(angle) * (unit - cosine * mean) / len(units)
        length = np.linalg.norm(step)
        if length < tolerance:
            break
        mean = np.cos(length) * mean + np.sin(length) * step / length
        mean /= np.linalg.norm(mean)
    return np.asarray(np.mean(norms) * mean)


def _model_stock(deltas: Sequence[Array], by_row: bool) -> Array:
    shape = deltas[0].shape
    flat = [np.atleast_2d(d) if by_row else d.reshape(1, -1) for d in deltas]

    def cosine(a: Array, b: Array) -> Array:
        product = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
        return np.asarray((a * b).sum(-1) / product)

    mean = np.mean([cosine(a, b) for a, b in combinations(flat, 2)], axis=0)[:, None]
    count = len(flat)
    ratio = count * mean / (1 + (count - 1) * mean)
    return np.asarray(ratio * np.mean(flat, axis=0)).reshape(shape)


def _sce(deltas: Sequence[Array], share: float) -> Array:
    stacked = np.stack(deltas)
    if share < 1:
        variance = stacked.var(0)
        kept = int(np.count_nonzero(variance) * share)
        smallest = np.sort(variance.reshape(-1))[-kept]
        stacked = stacked * (variance >= smallest)
    mask = np.sign(stacked) == np.where(stacked.sum(0) >= 0, 1, -1)
    weights = (stacked**2).reshape(len(stacked), -1).mean(1)
    weights = (weights / weights.sum()).reshape(-1, *[1] * (stacked.ndim - 1)) * mask
    return np.asarray((stacked * weights).sum(0) / weights.sum(0).clip(1e-6))
