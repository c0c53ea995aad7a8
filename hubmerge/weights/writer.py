"""Write checkpoints: create files like the base's first, then write values at known offsets.

Headers, sizes and offsets are fixed before the first value is known, so tensors may be written in
any order and only one is in memory. The same values give the same bytes.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from pathlib import Path

import numpy as np

from hubmerge.errors import CheckpointError
from hubmerge.weights.atomic_folder import disk_errors_name, nearest_existing
from hubmerge.weights.checkpoint import Checkpoint
from hubmerge.weights.dtypes import DTYPES, Array, is_float
from hubmerge.weights.header import TensorInfo
from hubmerge.weights.layout import SHARD_INDEX_SUFFIX, find_layout

SINGLE_FILE = "model.safetensors"
TensorSpec = tuple[str, str, tuple[int, ...]]  # name, dtype, shape


def create_files_like(
    base: Checkpoint, folder: Path, dtype: str | None = None, shard_size: int | None = None
) -> dict[str, TensorInfo]:
    """Create files like the base's in another folder, without values yet.

    File names, index and order are the base's; floating-point tensors get `dtype` if one is given.
    With `shard_size` the tensors are in files of at most so many bytes, named as transformers does;
    a larger tensor has a file of its own. The modules of an embedding model keep their files.
    Returns name -> location, for `write_tensor`. Raises CheckpointError if the disk is full.
    """
    check_space_for_copy(base, folder, dtype)
    layout = find_layout(base.folder)
    specs = [tensor_spec(base, name, dtype) for name in base.names()]
    own, modules = split_modules(specs, layout.files)
    if shard_size is not None:
        targets = _create_shards(folder, own, shard_size)
    else:
        files = {
            folder / name: [spec for spec in own if base.index[spec[0]].file.name == name]
            for name in layout.files
            if "/" not in name
        }
        targets = create_files(files, folder / layout.index if layout.index else None)
    return {**targets, **create_module_files(folder, modules)}


def split_modules(
    specs: Sequence[TensorSpec], files: Iterable[str]
) -> tuple[list[TensorSpec], dict[str, list[TensorSpec]]]:
    """The tensors of the folder itself, and those of each of its files in a subfolder."""
    modules: dict[str, list[TensorSpec]] = {name: [] for name in files if "/" in name}
    own: list[TensorSpec] = []
    for spec in specs:
        subfolder = spec[0].rpartition("/")[0]
        modules.get(f"{subfolder}/{SINGLE_FILE}", own).append(spec)
    return own, modules


def create_module_files(
    folder: Path, modules: Mapping[str, Sequence[TensorSpec]]
) -> dict[str, TensorInfo]:
    """Create the files in subfolders, by path, as `create_files` does."""
    for name in modules:
        with disk_errors_name(folder / name):
            (folder / name).parent.mkdir(exist_ok=True)
    return create_files({folder / name: specs for name, specs in modules.items()})


def create_files(
    files: Mapping[Path, Sequence[TensorSpec]], index: Path | None = None
) -> dict[str, TensorInfo]:
    """Create files for these tensors, without values yet, and the index of shards if one is named.

    Returns name -> location, for `write_tensor`. The same specs give the same bytes.
    """
    tensors: dict[str, TensorInfo] = {}
    for file, specs in files.items():
        tensors |= _assign_offsets(file, specs)
    for file in files:
        _create_file(
            file, {name: tensor for name, tensor in tensors.items() if tensor.file == file}
        )
    if index is not None:
        _write_index(index, tensors)
    return tensors


def _create_shards(
    folder: Path, specs: Iterable[TensorSpec], shard_size: int
) -> dict[str, TensorInfo]:
    shards: list[list[TensorSpec]] = [[]]
    size = 0
    for spec in specs:
        if shards[-1] and size + spec_nbytes(spec) > shard_size:
            shards.append([])
            size = 0
        shards[-1].append(spec)
        size += spec_nbytes(spec)
    if len(shards) == 1:
        return create_files({folder / SINGLE_FILE: shards[0]})
    count = len(shards)
    files = {
        folder / f"model-{number:05}-of-{count:05}.safetensors": shard
        for number, shard in enumerate(shards, 1)
    }
    return create_files(files, folder / f"model{SHARD_INDEX_SUFFIX}")


def check_space_for_copy(base: Checkpoint, folder: Path, dtype: str | None = None) -> None:
    """Raise CheckpointError if there is too little disk space for `create_files_like`.

    The folder need not exist. The small headers are not counted.
    """
    specs = (tensor_spec(base, name, dtype) for name in base.names())
    check_free_space(folder, sum(spec_nbytes(spec) for spec in specs))


def check_free_space(folder: Path, needed: int) -> None:
    """Raise CheckpointError if the disk of a folder, which need not exist, has too little space."""
    parent = nearest_existing(folder.absolute().parent)
    free = shutil.disk_usage(parent).free
    if needed > free:
        raise CheckpointError(f"{parent} has {free:,} bytes free, and the weights need {needed:,}.")


def write_tensor(target: TensorInfo, values: Array) -> None:
    """Write the values of one tensor at its location; they must have its dtype and shape."""
    if values.dtype != DTYPES[target.dtype] or values.shape != target.shape:
        raise ValueError(f"{target} got {values.dtype} {values.shape}")
    raw = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    _write_at(target.file, raw.data, target.start)


def tensor_spec(base: Checkpoint, name: str, dtype: str | None) -> TensorSpec:
    tensor = base.index[name]
    return name, dtype if dtype and is_float(tensor.dtype) else tensor.dtype, tensor.shape


def spec_nbytes(spec: TensorSpec) -> int:
    _, dtype, shape = spec
    return prod(shape) * DTYPES[dtype].itemsize


def _assign_offsets(file: Path, specs: Sequence[TensorSpec]) -> dict[str, TensorInfo]:
    """The location of each tensor; the size of the header is added last."""
    tensors = _offsets_in_order(file, specs)
    if any(tensor.start % DTYPES[tensor.dtype].itemsize for tensor in tensors.values()):
        # Readers map the file and need aligned values: widest dtype first ensures that.
        tensors = _offsets_in_order(file, sorted(specs, key=lambda spec: -DTYPES[spec[1]].itemsize))
    data_start = len(_encode_header(tensors))
    return {
        name: TensorInfo(file, t.dtype, t.shape, data_start + t.start, data_start + t.end)
        for name, t in tensors.items()
    }


def _offsets_in_order(file: Path, specs: Iterable[TensorSpec]) -> dict[str, TensorInfo]:
    tensors: dict[str, TensorInfo] = {}
    position = 0
    for name, dtype, shape in specs:
        end = position + spec_nbytes((name, dtype, shape))
        tensors[name] = TensorInfo(file, dtype, shape, position, end)
        position = end
    return tensors


def _encode_header(tensors: Mapping[str, TensorInfo], data_start: int = 0) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    for name, tensor in tensors.items():
        offsets = [tensor.start - data_start, tensor.end - data_start]
        # A tensor of a subfolder has its name before its own.
        own_name = name.removeprefix(f"{tensor.file.parent.name}/")
        entries[own_name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": offsets}
    raw = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)
    return struct.pack("<Q", len(raw)) + raw


def _create_file(file: Path, tensors: Mapping[str, TensorInfo]) -> None:
    data_start = min((tensor.start for tensor in tensors.values()), default=0)
    header = _encode_header(tensors, data_start)
    _write_at(file, memoryview(header), 0)
    with disk_errors_name(file):
        os.truncate(file, max((tensor.end for tensor in tensors.values()), default=len(header)))


def _write_index(file: Path, tensors: Mapping[str, TensorInfo]) -> None:
    total = sum(tensor.nbytes for tensor in tensors.values())
    files = {name: tensors[name].file.name for name in sorted(tensors)}
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": files}, indent=2)
    with disk_errors_name(file):
        file.write_text(text + "\n", encoding="utf-8")


def _write_at(file: Path, data: memoryview, position: int) -> None:
    with disk_errors_name(file):
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            done = 0
            while done < len(data):  # one call writes at most 2 GiB
                done += os.pwrite(descriptor, data[done:], position + done)
        finally:
            os.close(descriptor)
