"""A model with an image tower and a text tower, whichever library wrote its folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from open_clip.transform import PreprocessCfg
from torch import Tensor, nn

from hubmerge.errors import CheckpointError
from hubmerge.models.clip_folder import open_transformers_clip
from hubmerge.models.open_clip_folder import open_open_clip
from hubmerge.models.preprocess import Transform
from hubmerge.refs import printable
from hubmerge.weights.checkpoint import open_checkpoint

# Keys by which a config asks its loader to run code that came with it (CVE-2026-5241 and kin).
_CODE_KEYS = frozenset({"auto_map", "trust_remote_code", "model_file", "custom_pipelines"})
_OTHER_CONFIGS = ("tokenizer_config.json", "preprocessor_config.json")


class VisionText(Protocol):
    """An opened model, whichever library wrote it."""

    @property
    def encoder(self) -> nn.Module:
        """Images [B, 3, H, W] -> features [B, D]: the part that is trained."""

    @property
    def preprocess(self) -> PreprocessCfg:
        """Size, mean and standard deviation of the images it takes."""

    @property
    def layout(self) -> str:
        """Whose loader opens its folder: open_clip or transformers."""

    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """Features [N, D] of N prompts, not normalised."""

    def scale(self) -> float:
        """exp(logit_scale)."""

    def transform(self, augment: bool) -> Transform:
        """From a PIL image to a tensor [3, H, W]: as for evaluation, or with a random crop."""

    def save(self, folder: Path) -> None:
        """Write the weights in the layout they came in."""


def open_model(folder: Path) -> VisionText:
    """Open an open_clip or transformers CLIP folder on the CPU, in float32, from safetensors only.

    Nothing outside the folder is looked at. Raises CheckpointError for any other layout, pickled
    weights, or a config that wants code to be run or files to be downloaded.
    """
    for name in _OTHER_CONFIGS:
        if (folder / name).is_file():
            _read_config(folder / name)
    if (folder / "open_clip_config.json").is_file():
        return _opened(open_open_clip, folder, _read_config(folder / "open_clip_config.json"))
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{folder} holds no model: neither open_clip_config.json nor config.json is there."
        )
    config = _read_config(folder / "config.json")
    if config.get("model_type") != "clip":
        raise CheckpointError(
            f"{folder} holds a {config.get('model_type', 'nameless')!r} model.",
            "Image tasks need a CLIP in open_clip's or transformers' layout.",
        )
    return _opened(open_transformers_clip, folder, config)


def _opened(
    opener: Callable[[Path, dict[str, Any]], VisionText], folder: Path, config: dict[str, Any]
) -> VisionText:
    open_checkpoint(folder)  # refuses pickles, links and shards that lead out of the folder
    try:
        model = opener(folder, config)
        model.transform(augment=False)
    except (AssertionError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
        reason = printable(" ".join(str(error).split()))[:400]
        raise CheckpointError(f"{folder} cannot be opened as a model: {reason}") from error
    return model


def _read_config(path: Path) -> dict[str, Any]:
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
