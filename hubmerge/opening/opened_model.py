"""A model by name and commit, and the same model with its files fetched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from hubmerge.durable import hash_file
from hubmerge.manifest import Manifest, files_digest
from hubmerge.refs import Revision
from hubmerge.weights.adapter_config_fields import FILE
from hubmerge.weights.checkpoint import Checkpoint
from hubmerge.weights.moe_layout import settings_in
from hubmerge.weights.writer import side_files


@dataclass(frozen=True)
class Pinned:
    """A model by name and commit, before its weights are fetched."""

    revision: Revision
    manifest: Manifest | None


@dataclass(frozen=True)
class Opened:
    """A model at hand: its pinned revision, its checkpoint, and its manifest if it has one.

    `licence` is the one that its card names at that commit, as the Hub spells it.
    """

    revision: Revision
    checkpoint: Checkpoint
    manifest: Manifest | None
    licence: str | None = None

    @property
    def folder(self) -> Path:
        return self.checkpoint.folder

    @cached_property
    def files(self) -> Mapping[str, str]:
        """The SHA-256 of each file of the model; computed once, as it reads every byte."""
        if self.manifest:
            return self.manifest.files  # compared with the bytes when it was opened
        weights, settings = self.checkpoint.weight_names(), _settings(self.checkpoint)
        names = {*weights, *settings, *side_files(self.folder)}
        return {name: hash_file(self.folder / name) for name in sorted(names)}

    @property
    def digest(self) -> str:
        """What names the model wherever it lies."""
        return files_digest(self.files)


def _settings(checkpoint: Checkpoint) -> tuple[str, ...]:
    """The files that say what weights mean: an adapter's alpha is half of them."""
    if checkpoint.is_moe:
        return settings_in(checkpoint.folder)
    return (FILE,) if checkpoint.kind == "lora" else ()
