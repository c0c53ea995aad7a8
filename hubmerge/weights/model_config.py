"""The config.json of a model, changed where it must agree with the weights that are written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hubmerge.weights.dtypes import torch_dtype_name
from hubmerge.weights.header import parse_json_object

CONFIG_JSON = "config.json"
TIE_KEY = "tie_word_embeddings"
_DTYPE_KEYS = ("dtype", "torch_dtype")


def read_model_config(folder: Path) -> dict[str, Any]:
    """The config.json of a folder, empty without one; CheckpointError if it is no JSON object."""
    path = folder / CONFIG_JSON
    return parse_json_object(path.read_bytes(), str(path)) if path.is_file() else {}


def changed_config(
    folder: Path, dtype: str | None = None, separate_head: bool = False
) -> dict[str, bytes]:
    """The changed config.json of a folder, by name, for the weights that are written next to it.

    Its `dtype` or `torch_dtype`, at any depth, names the new safetensors dtype: loaders convert the
    weights to what the configuration names. With `separate_head` it says that the output head is
    not tied to the embedding. Empty if nothing changes. Raises CheckpointError if the file is not a
    JSON object.
    """
    config = read_model_config(folder)
    changed = _with_dtype(config, torch_dtype_name(dtype)) if dtype else dict(config)
    if separate_head and config:
        changed = {**_untied(changed), TIE_KEY: False}
    if changed == config:
        return {}
    return {CONFIG_JSON: (json.dumps(changed, indent=2, ensure_ascii=False) + "\n").encode()}


def _with_dtype(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: _value_with_dtype(key, value, name) for key, value in config.items()}


def _value_with_dtype(key: str, value: Any, name: str) -> Any:
    if isinstance(value, dict):
        return _with_dtype(value, name)
    return name if key in _DTYPE_KEYS and isinstance(value, str) else value


def _untied(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _untied(value) if isinstance(value, dict) else False if key == TIE_KEY else value
        for key, value in config.items()
    }
