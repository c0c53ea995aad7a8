"""Extract a LoRA from a full fine-tune: the closest change of low rank, matrix by matrix.

For full checkpoints where adapters are needed. Changes outside the named matrices and beyond the
rank are lost; `Extraction` reports how much is kept.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hubmerge.errors import CheckpointError, raise_together
from hubmerge.weights.adapter_config_fields import ADAPTER_CONFIG
from hubmerge.weights.adapter_names import LORA_A, LORA_B, PEFT_PREFIX
from hubmerge.weights.atomic_folder import disk_errors_name
from hubmerge.weights.dtypes import Array, is_float
from hubmerge.weights.header import safe_name, summarize_names
from hubmerge.weights.layout import ADAPTER_WEIGHTS
from hubmerge.weights.task_vector import TaskVector
from hubmerge.weights.writer import create_files, write_tensor

_IN_PROJ, _OUT_PROJ = ".in_proj_weight", ".out_proj.weight"
# This version counts an attention's out_proj twice, which `write_adapter` compensates.
_PEFT_VERSION = "0.21.2"

Factors = tuple[Array, Array]


@dataclass(frozen=True)
class Extraction:
    """Module path -> A [R, I] and B [O, R] in float32, where B A approximates its change.

    In nn.MultiheadAttention the path of in_proj_weight is the attention's own. `kept` is the share
    of the squared norm of everything that the expert changed, and `attainable` the share without a
    limit on the rank; neither includes changes outside these modules. With `inputs_first` the base
    stores its matrices as [I, O].
    """

    rank: int
    factors: Mapping[str, Factors] = field(repr=False)
    kept: float
    attainable: float
    inputs_first: bool = False


def extract(
    vector: TaskVector, names: Sequence[str], rank: int, inputs_first: bool = False
) -> Extraction:
    """The best approximation of rank `rank` to the change of each of these matrices.

    By singular values (Eckart and Young, https://doi.org/10.1007/BF02288367), with the root of each
    in both factors; exact up to rounding where the change has no higher rank. The same vector gives
    the same factors. Raises CheckpointError for names that are not matrices of the base, for half
    of a fused attention, and for changes that are not finite.
    """
    raise_together(CheckpointError, list(_find_problems(vector, names, rank)))
    factors: dict[str, Factors] = {}
    kept = attainable = total = 0.0
    for name in vector.names():
        delta = vector.delta(name).astype(np.float64)
        squares = float(np.vdot(delta, delta))
        if not np.isfinite(squares):
            raise CheckpointError(
                f"The change of {vector.expert.folder} to {safe_name(name)} is not finite."
            )
        total += squares
        if name in names:
            a, b, values = factorize(delta.T if inputs_first else delta, rank)
            factors[module_path(name)] = a, b
            attainable += squares
            kept += float(np.vdot(values, values))
    if total == 0:
        kept = attainable = total = 1.0
    return Extraction(rank, factors, kept / total, attainable / total, inputs_first)


def factorize(matrix: Array, rank: int) -> tuple[Array, Array, Array]:
    """A [R, I], B [O, R] and the singular values kept of a matrix [O, I], largest first.

    The largest entry of each row of A is positive, as the sign of a singular vector is arbitrary. A
    direction with singular value zero gets a unit row in A and zeros in B: it changes nothing and
    can be trained, like a new LoRA. Rows beyond min(O, I) are zero in both.
    """
    u, values, v = np.linalg.svd(matrix, full_matrices=False)
    u, values, v = u[:, :rank], values[:rank], v[:rank]
    signs = np.sign(v[np.arange(len(v)), np.abs(v).argmax(axis=1)])
    noise = np.finfo(np.float32).eps * values[0]
    roots = np.sqrt(values)
    a = np.zeros((rank, matrix.shape[1]), np.float32)
    b = np.zeros((matrix.shape[0], rank), np.float32)
    a[: len(v)] = v * (signs * np.where(values > noise, roots, 1.0))[:, None]
    b[:, : len(v)] = u * (signs * np.where(values > noise, roots, 0.0))
    return a, b, values


def write_adapter(
    folder: Path,
    extraction: Extraction,
    base_name: str,
    base_sha: str | None,
    target_modules: Sequence[str] | None = None,
) -> None:
    """Write adapter_config.json and adapter_model.safetensors, as peft 0.21.2 reads them.

    `target_modules` are the names by which peft finds the modules; by default the full path of
    each. The same extraction gives the same bytes. Raises CheckpointError if writing fails.
    """
    factors = extraction.factors
    tensors = {name: values for path in factors for name, values in _peft_tensors(path, factors)}
    specs = [(name, "F32", tensors[name].shape) for name in sorted(tensors)]
    with disk_errors_name(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for name, target in create_files({folder / ADAPTER_WEIGHTS: specs}).items():
        write_tensor(target, tensors[name])
    targets = target_modules or [path for path in factors if not _is_out_proj(path, factors)]
    config = {
        "base_model_name_or_path": base_name,
        "bias": "none",
        "fan_in_fan_out": extraction.inputs_first,
        "inference_mode": True,
        "lora_alpha": extraction.rank,  # alpha / r is 1
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "peft_version": _PEFT_VERSION,
        "r": extraction.rank,
        "revision": base_sha,
        "target_modules": sorted(targets),
        "task_type": None,
    }
    with disk_errors_name(folder):
        text = json.dumps(config, indent=2, sort_keys=True)
        (folder / ADAPTER_CONFIG).write_text(text + "\n", encoding="utf-8")


def _peft_tensors(path: str, factors: Mapping[str, Factors]) -> Iterator[tuple[str, Array]]:
    """A module's factors by their names in peft."""
    a, b = factors[path]
    if _is_out_proj(path, factors):
        # peft adds this change twice: docs/decisions/0009.
        path, b = f"{path.removesuffix('.out_proj')}.base_layer.out_proj", b / np.float32(2)
    yield f"{PEFT_PREFIX}{path}.{LORA_A}", a
    yield f"{PEFT_PREFIX}{path}.{LORA_B}", b


def _is_out_proj(path: str, paths: Collection[str]) -> bool:
    """Whether a module is inside another adapted module, as only in nn.MultiheadAttention."""
    return path.endswith(".out_proj") and path.removesuffix(".out_proj") in paths


def module_path(name: str) -> str:
    """The module of a tensor; for in_proj_weight the attention itself."""
    return name.removesuffix(_IN_PROJ) if name.endswith(_IN_PROJ) else name.removesuffix(".weight")


def _find_problems(vector: TaskVector, names: Sequence[str], rank: int) -> Iterator[str]:
    index = vector.base.index
    if rank < 1:
        yield f"The rank of an adapter must be at least 1, not {rank}."
    if not names:
        yield "No matrix is named for the adapter to change."
    invalid = [
        name
        for name in names
        if not name.endswith((".weight", _IN_PROJ))
        or name not in index
        or len(index[name].shape) != 2
        or not is_float(index[name].dtype)
    ]
    if invalid:
        yield f"{vector.base.folder} has no module with a matrix for {summarize_names(invalid)}."
    halves = {
        name.removesuffix(end)
        for end in (_IN_PROJ, _OUT_PROJ)
        for name in names
        if name.endswith(end)
    }
    for attention in sorted(halves):
        pair = {attention + _IN_PROJ, attention + _OUT_PROJ}
        if attention + _IN_PROJ in index and not pair <= set(names):
            name = safe_name(attention)
            yield f"In the attention {name}, in_proj_weight and out_proj must be adapted together."
