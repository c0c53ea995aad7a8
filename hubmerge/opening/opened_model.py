"""A model pinned to a commit, and the same model with its files fetched and opened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path

from hubmerge.file_digests import file_digest, file_digests
from hubmerge.manifest import Manifest, files_digest
from hubmerge.model_files import PICKLE_SUFFIXES
from hubmerge.refs import Revision
from hubmerge.weights.adapter_config_fields import ADAPTER_CONFIG
from hubmerge.weights.checkpoint import Checkpoint
from hubmerge.weights.embedding_modules import read_stack
from hubmerge.weights.layout import regular_file
from hubmerge.weights.moe_layout import config_file_names

# The files besides the weights whose bytes identify a model that has no manifest. Locks and
# manifests hold the digests, so this list does not change.
_IDENTIFYING = (
    "config.json", "open_clip_config.json", "generation_config.json", "preprocessor_config.json",
    "processor_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "tokenizer*", "vocab*", "merges*", "bpe*", "*.txt", "*.gz", "*.model",
)  # fmt: skip
_NOT_IDENTIFYING = (*PICKLE_SUFFIXES, ".py", ".safetensors")


@dataclass(frozen=True)
class PinnedModel:
    """A model pinned to a commit, before its weights are fetched."""

    revision: Revision
    manifest: Manifest | None

    @property
    def is_moe(self) -> bool:
        """Whether its manifest is that of a mixture of experts."""
        return self.manifest is not None and self.manifest.is_moe


@dataclass(frozen=True)
class OpenedModel:
    """A model whose files are local: its revision, its checkpoint, its manifest if it has one.

    `licence` is the one on its card at that commit, as the Hub spells it.
    """

    revision: Revision
    checkpoint: Checkpoint
    manifest: Manifest | None
    licence: str | None = None

    @property
    def folder(self) -> Path:
        return self.checkpoint.folder

    @property
    def identifying_files(self) -> Mapping[str, Path]:
        """Without a manifest, the files whose bytes identify the model, by their path in it."""
        weights, configs = self.checkpoint.weight_file_names(), _config_files(self.checkpoint)
        names = {*weights, *configs, *_identifying_files(self.folder), *_module_files(self.folder)}
        return {name: self.folder / name for name in sorted(names)}

    @cached_property
    def files(self) -> Mapping[str, str]:
        """File name -> SHA-256 of each file of the model; computed once from all bytes."""
        if self.manifest:
            return self.manifest.files  # checked when the model was opened
        files = self.identifying_files
        digests = file_digests(files.values())
        return {name: digests[path] for name, path in files.items()}

    @property
    def digest(self) -> str:
        """The digest that identifies the model wherever it is stored."""
        return files_digest(self.files)

    @property
    def weights_digest(self) -> str:
        """The digest of the weight files alone."""
        names = self.checkpoint.weight_file_names()
        return files_digest({n: self.files.get(n) or file_digest(self.folder / n) for n in names})


def _config_files(checkpoint: Checkpoint) -> tuple[str, ...]:
    """The configuration files that the weights need, such as that of an adapter."""
    if checkpoint.is_moe:
        return config_file_names(checkpoint.folder)
    return (ADAPTER_CONFIG,) if checkpoint.kind == "lora" else ()


def _module_files(folder: Path) -> tuple[str, ...]:
    """The files of an embedding model's modules, unless they are those of mean pooling alone.

    Earlier versions knew no modules, and locks hold their digests of such models.
    """
    stack = read_stack(folder)
    return () if stack is None or stack.is_plain else stack.files()


def _identifying_files(folder: Path) -> list[str]:
    """The files of `_IDENTIFYING` in a folder, which must be regular files."""
    names = [
        entry.name
        for entry in folder.iterdir()
        if not entry.is_dir()
        and not entry.name.endswith(_NOT_IDENTIFYING)
        and any(fnmatchcase(entry.name, pattern) for pattern in _IDENTIFYING)
    ]
    for name in names:
        regular_file(folder, name)
    return names
