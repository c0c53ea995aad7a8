"""Read the JSON configs of a model folder; configs that would run code are refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hubmerge.errors import CheckpointError

# Keys by which a config makes its loader run code from the folder (such as CVE-2026-5241).
_CODE_KEYS = frozenset({"auto_map", "trust_remote_code", "model_file", "custom_pipelines"})
_SIDE_CONFIGS = ("tokenizer_config.json", "preprocessor_config.json", "generation_config.json")


def check_configs(folder: Path) -> None:
    """Raise CheckpointError if a tokenizer, processor or generation config is broken or unsafe."""
    for name in _SIDE_CONFIGS:
        if (folder / name).is_file():
            read_config(folder / name)


def read_config(path: Path) -> dict[str, Any]:
    """The content of a config; raises CheckpointError if it is broken or would run code."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not readable JSON.") from error
    return parse_config(text, str(path))


def parse_config(text: str, where: str) -> dict[str, Any]:
    """Same as `read_config` for text; `where` names it in errors."""
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where} is not readable JSON.") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{where} is not a JSON object.")
    if code_keys := sorted(_CODE_KEYS & set(_keys(config))):
        raise CheckpointError(
            f"{where} would run code from the model folder ({code_keys[0]!r}), which hubmerge "
            "never does.",
            "Use a model of an architecture that the library has built in, or remove the key.",
        )
    return config


def _keys(value: object) -> Iterator[str]:
    """The keys of a JSON value at any depth; open_clip passes nested ones on to transformers."""
    for key, inner in value.items() if isinstance(value, dict) else ():
        yield key
        yield from _keys(inner)
