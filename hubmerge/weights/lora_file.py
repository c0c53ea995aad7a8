"""Write a LoRA as peft 0.21.2 reads it: adapter_config.json and adapter_model.safetensors."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hubmerge.errors import CheckpointError
from hubmerge.weights.adapter_config_fields import ADAPTER_CONFIG
from hubmerge.weights.adapter_names import EMBEDDING_A, EMBEDDING_B, LORA_A, LORA_B, PEFT_PREFIX
from hubmerge.weights.atomic_folder import disk_errors_name
from hubmerge.weights.dtypes import DTYPES, Array, cast
from hubmerge.weights.factorization import Factors
from hubmerge.weights.header import safe_name
from hubmerge.weights.layout import ADAPTER_WEIGHTS
from hubmerge.weights.lora_modules import LoraModule
from hubmerge.weights.writer import create_files, write_tensor

# This version counts an attention's out_proj twice, which `write_adapter` compensates.
_PEFT_VERSION = "0.21.2"

LoraFactors = Mapping[LoraModule, Factors]


@dataclass(frozen=True)
class AdapterFields:
    """What the configuration of an adapter says besides its factors.

    `base` is the base's repository or folder, and `revision` its commit. `task_type` and
    `auto_mapping` tell peft which class it adapts. `exact_names` is whether a name in
    target_modules could match other modules too: then they are written as one regular expression.
    """

    base: str
    revision: str | None = None
    task_type: str | None = None
    auto_mapping: Mapping[str, str] | None = field(default=None, hash=False)
    exact_names: bool = False


def write_adapter(
    folder: Path, factors: LoraFactors, rank: int, fields: AdapterFields, dtype: str = "F32"
) -> None:
    """Write an adapter of one rank, whose scale is 1; the same factors give the same bytes.

    `dtype` is a safetensors name. Raises CheckpointError if writing fails, or for a value that is
    not finite in that dtype.
    """
    tensors = dict(_peft_tensors(factors, dtype))
    specs = [(name, dtype, tensors[name].shape) for name in sorted(tensors)]
    with disk_errors_name(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for name, target in create_files({folder / ADAPTER_WEIGHTS: specs}).items():
        write_tensor(target, tensors[name])
    with disk_errors_name(folder):
        text = json.dumps(_config(factors, rank, fields), indent=2, sort_keys=True)
        (folder / ADAPTER_CONFIG).write_text(text + "\n", encoding="utf-8")


def _config(factors: LoraFactors, rank: int, fields: AdapterFields) -> dict[str, Any]:
    paths = {module.path for module in factors}
    config = {
        "base_model_name_or_path": fields.base,
        "bias": "none",
        "fan_in_fan_out": any(m.inputs_first and m.kind == "linear" for m in factors),
        "inference_mode": True,
        "lora_alpha": rank,  # alpha / r is 1
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "peft_version": _PEFT_VERSION,
        "r": rank,
        "revision": fields.revision,
        "target_modules": _targets(
            sorted(path for path in paths if not _is_out_proj(path, paths)), fields.exact_names
        ),
        "task_type": fields.task_type,
    }
    mapping = fields.auto_mapping
    return {**config, "auto_mapping": dict(mapping)} if mapping else config


def _targets(paths: Sequence[str], exact: bool) -> list[str] | str:
    return "|".join(map(re.escape, paths)) if exact else list(paths)


def _peft_tensors(factors: LoraFactors, dtype: str) -> Iterator[tuple[str, Array]]:
    """The factors of all modules by their names in peft, in the dtype that is written."""
    paths = {module.path for module in factors}
    for module, (a, b) in factors.items():
        path = f"{PEFT_PREFIX}{module.path}"
        if _is_out_proj(module.path, paths):
            # peft adds this change twice: docs/decisions/0009.
            path, b = f"{path.removesuffix('.out_proj')}.base_layer.out_proj", b / np.float32(2)
        names = (LORA_A, LORA_B)
        if module.kind == "embedding":
            names = EMBEDDING_A, EMBEDDING_B
        elif module.kind == "convolution":
            a = a.reshape(len(a), *module.shape[1:])
            b = b.reshape(*b.shape, *(1 for _ in module.shape[2:]))
        for part, values in zip(names, (a, b), strict=True):
            yield f"{path}.{part}", _rounded(values, dtype, f"{path}.{part}")


def _rounded(values: Array, dtype: str, name: str) -> Array:
    rounded = cast(values, DTYPES[dtype])
    if not np.isfinite(rounded).all():
        raise CheckpointError(
            f"The factor {safe_name(name)} has values that are not finite in {dtype}.",
            "Write it with --dtype F32.",
        )
    return rounded


def _is_out_proj(path: str, paths: Collection[str]) -> bool:
    """Whether a module is inside another adapted module, as only in nn.MultiheadAttention."""
    return path.endswith(".out_proj") and path.removesuffix(".out_proj") in paths
