"""The files of a model whose layers are taken from others: cut anew, like those of its base."""

from __future__ import annotations

from pathlib import Path

from hubmerge.weights.checkpoint import Checkpoint
from hubmerge.weights.header import TensorInfo
from hubmerge.weights.layout import find_layout, regular_file
from hubmerge.weights.writer import (
    TensorSpec,
    check_space_for_copy,
    create_files,
    create_module_files,
    spec_nbytes,
    split_modules,
    tensor_spec,
)


def create_stack_files(
    base: Checkpoint, folder: Path, dtype: str | None = None
) -> dict[str, TensorInfo]:
    """Create files for the tensors of a stack in another folder, without values yet.

    One file if the folder of the base has one, else shards that are no larger than its largest.
    Returns name -> location, for `write_tensor`. Raises CheckpointError if the disk is full.
    """
    layout = find_layout(base.folder)
    every = [tensor_spec(base, name, dtype) for name in base.index]
    check_space_for_copy(base, folder, dtype)
    specs, modules = split_modules(every, layout.files)
    targets = create_module_files(folder, modules)
    if layout.index is None:
        return {**create_files({folder / layout.files[0]: specs}), **targets}
    own_files = [name for name in layout.files if "/" not in name]
    largest = max(regular_file(base.folder, name).stat().st_size for name in own_files)
    shards = _cut(specs, largest)
    stem = layout.index.removesuffix(".safetensors.index.json")
    names = [
        f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors"
        for number in range(1, len(shards) + 1)
    ]
    files = {folder / name: shard for name, shard in zip(names, shards, strict=True)}
    return {**create_files(files, folder / layout.index), **targets}


def _cut(specs: list[TensorSpec], largest: int) -> list[list[TensorSpec]]:
    """The tensors in order, in shards of at most `largest` bytes, or of one tensor."""
    shards: list[list[TensorSpec]] = [[]]
    size = 0
    for spec in specs:
        nbytes = spec_nbytes(spec)
        if shards[-1] and size + nbytes > largest:
            shards.append([])
            size = 0
        shards[-1].append(spec)
        size += nbytes
    return shards
