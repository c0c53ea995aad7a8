"""Copy the files of a model besides its weights: configuration, tokenizer, processor, licence."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from hubmerge import model_files
from hubmerge.weights.atomic_folder import disk_errors_name
from hubmerge.weights.embedding_modules import module_weight_files
from hubmerge.weights.layout import regular_file

# An adapter stands in place of the transformer that these configure.
_TRANSFORMER_CONFIGS = ("config.json", "generation_config.json")


def side_files(folder: Path) -> tuple[str, ...]:
    """The paths, with "/", of the files besides the weights that a model needs, sorted.

    The weights of an embedding model's modules are weights.
    Raises CheckpointError if one of them is a link that leaves the folder, or not a regular file.
    """
    modules = module_weight_files(folder)
    names = model_files.side_files(_paths_in(folder))
    for name in names:
        regular_file(folder, name)
    return tuple(name for name in names if name not in modules)


def other_files(folder: Path) -> tuple[str, ...]:
    """The files that `copy_side_files` leaves out and that are no weights of this layout."""
    return model_files.other_files(_paths_in(folder))


def copy_side_files(
    source: Path, folder: Path, replaced: Mapping[str, bytes] | None = None
) -> None:
    """Copy them byte for byte, subfolders too, except for those in `replaced`, by path."""
    for name in side_files(source):
        with disk_errors_name(folder / name):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            if replaced and name in replaced:
                (folder / name).write_bytes(replaced[name])
            else:
                shutil.copyfile(source / name, folder / name)


def copy_module_files(source: Path, folder: Path) -> None:
    """Copy modules and tokenizer of an embedding model beside an adapter of its transformer.

    With them sentence-transformers loads the adapter as it was trained.
    """
    modules = module_weight_files(source)
    for name in (*side_files(source), *modules):
        if name not in _TRANSFORMER_CONFIGS:
            with disk_errors_name(folder / name):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(regular_file(source, name), folder / name)


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files into a folder, by their path in it."""
    for name, content in files.items():
        with disk_errors_name(folder / name):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)


def _paths_in(folder: Path) -> list[str]:
    """All files in a folder and its subfolders; links to folders are not followed."""
    return [
        (Path(parent) / name).relative_to(folder).as_posix()
        for parent, _, names in os.walk(folder)
        for name in names
    ]
