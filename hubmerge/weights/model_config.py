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
_SIZE_KEY, _PADDING_KEY = "vocab_size", "pad_token_id"
_DTYPE_KEYS = ("dtype", "torch_dtype")


def read_model_config(folder: Path) -> dict[str, Any]:
    """The config.json of a folder, empty without one; CheckpointError if it is no JSON object."""
    path = folder / CONFIG_JSON
    return parse_json_object(path.read_bytes(), str(path)) if path.is_file() else {}


def changed_config(
    folder: Path,
    dtype: str | None = None,
    separate_head: bool = False,
    vocabulary_size: int | None = None,
    stacked: Mapping[str, Any] | None = None,
) -> dict[str, bytes]:
    """The changed config.json of a folder, by name, for the weights that are written next to it.

    Its `dtype` or `torch_dtype`, at any depth, names the new safetensors dtype: loaders convert the
    weights to what the configuration names. With `separate_head` it says that the output head is
    not tied to the embedding. A new `vocabulary_size` replaces the old one, at any depth. `stacked`
    is the configuration of other layers, which is changed in the folder's place. Empty if nothing
    changes. Raises CheckpointError if the file is not a JSON object.
    """
    old = read_model_config(folder)
    config = old if stacked is None else stacked
    changed = _with_dtype(config, torch_dtype_name(dtype)) if dtype else dict(config)
    if separate_head and config:
        changed = {**_untied(changed), TIE_KEY: False}
    if vocabulary_size is not None:
        changed = _with_vocabulary_size(changed, config.get(_SIZE_KEY), vocabulary_size)
    if changed == old:
        return {}
    return {CONFIG_JSON: (json.dumps(changed, indent=2, ensure_ascii=False) + "\n").encode()}


def with_tokens(
    config: Mapping[str, Any], size: int | None, rows: Mapping[int, int]
) -> dict[str, Any]:
    """The configuration over an embedding of another vocabulary, at any depth.

    `size` is its number of rows, None if that is not known. `rows` are the new rows of tokens by
    their old ones: the token for padding has another row, or none.
    """
    changed = dict(config)
    if size is not None:
        changed = _with_vocabulary_size(changed, config.get(_SIZE_KEY), size)
    return _with_padding(changed, rows)


def vocabulary_size(config: Mapping[str, Any]) -> int | None:
    """The number of rows that a configuration states for the embedding, if it states one."""
    size = config.get(_SIZE_KEY, _text_part(config).get(_SIZE_KEY))
    return size if isinstance(size, int) else None


def _with_padding(config: Mapping[str, Any], rows: Mapping[int, int]) -> dict[str, Any]:
    return {
        key: _with_padding(value, rows)
        if isinstance(value, dict)
        else rows.get(value)
        if key == _PADDING_KEY and isinstance(value, int)
        else value
        for key, value in config.items()
    }


def _with_dtype(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: _value_with_dtype(key, value, name) for key, value in config.items()}


def _value_with_dtype(key: str, value: Any, name: str) -> Any:
    if isinstance(value, dict):
        return _with_dtype(value, name)
    return name if key in _DTYPE_KEYS and isinstance(value, str) else value


def _with_vocabulary_size(config: Mapping[str, Any], old: object, new: int) -> dict[str, Any]:
    """The configuration with a new size where it has the old one, or in its only text part."""
    old = old if old is not None else _text_part(config).get(_SIZE_KEY)
    return {
        key: _with_vocabulary_size(value, old, new)
        if isinstance(value, dict)
        else new
        if key == _SIZE_KEY and value == old
        else value
        for key, value in config.items()
    }


def _text_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    part = config.get("text_config")
    return part if isinstance(part, dict) else {}


def _untied(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _untied(value) if isinstance(value, dict) else False if key == TIE_KEY else value
        for key, value in config.items()
    }
