"""The JSON beside the weights, read so that none of it can ask for code or for other files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hubmerge.errors import CheckpointError

# Keys by which a config asks its loader to run code that came with it (CVE-2026-5241 and kin).
_CODE_KEYS = frozenset({"auto_map", "trust_remote_code", "model_file", "custom_pipelines"})
_BESIDE = ("tokenizer_config.json", "preprocessor_config.json", "generation_config.json")


def check_configs(folder: Path) -> None:
    """Raise CheckpointError where a config beside the model's own is broken or wants code run."""
    for name in _BESIDE:
        if (folder / name).is_file():
            read_config(folder / name)


def read_config(path: Path) -> dict[str, Any]:
    """A config as it stands; raises CheckpointError if it is broken or asks for code to be run."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not readable JSON.") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} is not a JSON object.")
    if found := sorted(_CODE_KEYS & set(_keys(config))):
        raise CheckpointError(
            f"{path} asks for code to be run ({found[0]!r}); hubmerge runs none.",
            "Use a model of the library's own architectures, or remove the key if you trust it.",
        )
    return config


def _keys(value: object) -> Iterator[str]:
    """The keys of a JSON value at any depth: open_clip hands nested ones on to transformers."""
    for key, inner in value.items() if isinstance(value, dict) else ():
        yield key
        yield from _keys(inner)
