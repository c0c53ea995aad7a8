"""A checkpoint in the making: the base's files again, with new values at known places.

Everything about the files (header, size, where each tensor goes) is settled before the first value
is known, so tensors may be written in any order and only one is in memory. Same values, same bytes.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from math import prod
from pathlib import Path

import numpy as np

from hubmerge.errors import CheckpointError
from hubmerge.weights.atomic_folder import blamed, existing
from hubmerge.weights.checkpoint import Checkpoint
from hubmerge.weights.dtypes import DTYPES, Array, is_float
from hubmerge.weights.header import Tensor
from hubmerge.weights.layout import PICKLES, find_layout, plain_file

# What a model needs beside its weights. A card, a manifest or code of the base would be a lie or a
# danger beside other weights, so nothing is copied that is not named here.
_SIDE_FILES = (
    "config.json",
    "open_clip_config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "tokenizer*",
    "vocab*",
    "merges*",
    "bpe*",
    "*.txt",
    "*.gz",
    "*.model",
)

_NEVER = (*PICKLES, ".py", ".safetensors")

Spec = tuple[str, str, tuple[int, ...]]  # name, dtype, shape


def mirror(base: Checkpoint, folder: Path, dtype: str | None = None) -> dict[str, Tensor]:
    """Lay out the base's files in another folder, empty of values, and say where each value goes.

    File names, index and order are the base's; floating-point tensors become `dtype` if one is
    given. Returns name -> place, for `write_tensor`. Raises CheckpointError where the disk is full.
    """
    layout = find_layout(base.folder)
    files = {
        folder / name: [
            _spec(base, tensor, dtype)
            for tensor in base.names()
            if base.index[tensor].file.name == name
        ]
        for name in layout.files
    }
    check_room(base, folder, dtype)
    return lay_out(files, folder / layout.index if layout.index else None)


def lay_out(files: Mapping[Path, Sequence[Spec]], index: Path | None = None) -> dict[str, Tensor]:
    """Create files of these tensors, empty of values, and the index of shards if there is one.

    Returns name -> place, for `write_tensor`. Same names, dtypes and shapes, same bytes.
    """
    placed: dict[str, Tensor] = {}
    for file, specs in files.items():
        placed |= _place(file, specs)
    for file in files:
        _create(file, {name: tensor for name, tensor in placed.items() if tensor.file == file})
    if index is not None:
        _write_index(index, placed)
    return placed


def check_room(base: Checkpoint, folder: Path, dtype: str | None = None) -> None:
    """Raise CheckpointError if the disk of a folder, which need not be there, cannot hold `mirror`.

    The header comes on top, but so little is not foretold.
    """
    specs = (_spec(base, name, dtype) for name in base.names())
    check_free(folder, sum(_nbytes(spec) for spec in specs))


def check_free(folder: Path, total: int) -> None:
    """Raise CheckpointError if the disk of a folder, which need not be there, lacks the bytes."""
    place = existing(folder.absolute().parent)
    free = shutil.disk_usage(place).free
    if total > free:
        raise CheckpointError(f"{place} has {free:,} bytes left, and the weights need {total:,}.")


def write_tensor(place: Tensor, values: Array) -> None:
    """Write the values of one tensor at its place; they must have its dtype and shape already."""
    if values.dtype != DTYPES[place.dtype] or values.shape != place.shape:
        raise ValueError(f"{place} was given {values.dtype} {values.shape}")
    raw = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    _write_at(place.file, raw.data, place.start)


def side_files(folder: Path) -> tuple[str, ...]:
    """The names of the files beside the weights that a model of the same shape needs, sorted.

    Raises CheckpointError where one of them is a link that leaves the folder, or no plain file.
    """
    names = sorted(entry.name for entry in os.scandir(folder) if not entry.is_dir())
    found = tuple(name for name in names if _is_side_file(name))
    for name in found:
        plain_file(folder, name)
    return found


def copy_side_files(source: Path, folder: Path) -> None:
    """Copy configuration and tokenizer, byte for byte, and nothing that is not on the list."""
    for name in side_files(source):
        with blamed(folder / name):
            shutil.copyfile(source / name, folder / name)


def _is_side_file(name: str) -> bool:
    return not name.endswith(_NEVER) and any(fnmatchcase(name, kind) for kind in _SIDE_FILES)


def _spec(base: Checkpoint, name: str, dtype: str | None) -> Spec:
    tensor = base.index[name]
    return name, dtype if dtype and is_float(tensor.dtype) else tensor.dtype, tensor.shape


def _nbytes(spec: Spec) -> int:
    _, dtype, shape = spec
    return prod(shape) * DTYPES[dtype].itemsize


def _place(file: Path, specs: Sequence[Spec]) -> dict[str, Tensor]:
    """Where each tensor goes, as offsets from the end of the header, which is added last."""
    placed = _in_order(file, specs)
    if any(tensor.start % DTYPES[tensor.dtype].itemsize for tensor in placed.values()):
        # Readers map the file and want each value aligned: wide before narrow does it.
        placed = _in_order(file, sorted(specs, key=lambda spec: -DTYPES[spec[1]].itemsize))
    begin = len(_header(placed))
    return {
        name: Tensor(file, t.dtype, t.shape, begin + t.start, begin + t.end)
        for name, t in placed.items()
    }


def _in_order(file: Path, specs: Iterable[Spec]) -> dict[str, Tensor]:
    placed: dict[str, Tensor] = {}
    position = 0
    for name, dtype, shape in specs:
        end = position + _nbytes((name, dtype, shape))
        placed[name] = Tensor(file, dtype, shape, position, end)
        position = end
    return placed


def _header(placed: Mapping[str, Tensor], begin: int = 0) -> bytes:
    described: dict[str, object] = {"__metadata__": {"format": "pt"}}
    for name, tensor in placed.items():
        offsets = [tensor.start - begin, tensor.end - begin]
        described[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": offsets}
    raw = json.dumps(described, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)
    return struct.pack("<Q", len(raw)) + raw


def _create(file: Path, placed: Mapping[str, Tensor]) -> None:
    begin = min((tensor.start for tensor in placed.values()), default=0)
    header = _header(placed, begin)
    _write_at(file, memoryview(header), 0)
    with blamed(file):
        os.truncate(file, max((tensor.end for tensor in placed.values()), default=len(header)))


def _write_index(file: Path, placed: Mapping[str, Tensor]) -> None:
    total = sum(tensor.nbytes for tensor in placed.values())
    files = {name: placed[name].file.name for name in sorted(placed)}
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": files}, indent=2)
    with blamed(file):
        file.write_text(text + "\n", encoding="utf-8")


def _write_at(file: Path, data: memoryview, position: int) -> None:
    with blamed(file):
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            done = 0
            while done < len(data):  # one call writes at most 2 GiB
                done += os.pwrite(descriptor, data[done:], position + done)
        finally:
            os.close(descriptor)
