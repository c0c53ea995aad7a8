"""A checkpoint: a folder of safetensors files, of which one tensor at a time is read."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType

import numpy as np

from hubmerge.errors import CheckpointError
from hubmerge.file_digests import file_digest
from hubmerge.kinds import MOE, CheckpointKind
from hubmerge.weights.dtypes import DTYPES, Array
from hubmerge.weights.header import TensorInfo, read_header, safe_name, summarize_names
from hubmerge.weights.layout import Layout, find_layout, regular_file
from hubmerge.weights.moe_config import is_moe_folder
from hubmerge.weights.moe_layout import find_moe_layout


@dataclass(frozen=True)
class Checkpoint:
    """Weights on disk of which only the headers have been read: `index` maps names to tensors.

    `kind` is "full" for all weights of a model, "lora" for an adapter, and "moe" for a mixture of
    experts. The experts of a mixture use the same tensor names, so the folder of each is put before
    its names: "experts/mnist/base_model.model.fc.lora_A.weight". `views` are tensors whose values
    are computed from those on disk when they are read; their locations have no meaning.
    """

    folder: Path
    kind: CheckpointKind
    index: Mapping[str, TensorInfo] = field(repr=False, hash=False)
    views: Mapping[str, Callable[[], Array]] = field(
        default_factory=dict, repr=False, hash=False, compare=False
    )

    @property
    def is_moe(self) -> bool:
        return self.kind == MOE

    def names(self) -> tuple[str, ...]:
        """The names of all tensors, in their order on disk, file after file."""
        return tuple(self.index)

    def tensor(self, name: str) -> TensorInfo:
        """The location of a tensor; CheckpointError if there is none of that name."""
        if name not in self.index:
            raise CheckpointError(f"{self.folder} has no tensor {safe_name(name)!r}.")
        return self.index[name]

    def read(self, name: str) -> Array:
        """The values of one tensor, in its own dtype and shape, as a new array.

        Raises CheckpointError if there is no such tensor, or its bytes cannot be read.
        """
        tensor = self.tensor(name)
        if name in self.views:
            return self.views[name]()
        return read_tensor(tensor, name)

    def read_first(self, name: str, count: int) -> Array:
        """The first values of a tensor on disk, at most `count`; raises as `read` does."""
        tensor = self.tensor(name)
        nbytes = min(tensor.nbytes, count * DTYPES[tensor.dtype].itemsize)
        return _read(tensor, name, nbytes)

    def with_views(self, views: Mapping[str, tuple[TensorInfo, Callable[[], Array]]]) -> Checkpoint:
        """A copy with tensors, new ones or others, that are computed when they are read."""
        index = {**self.index, **{name: tensor for name, (tensor, _) in views.items()}}
        reads = {**self.views, **{name: read for name, (_, read) in views.items()}}
        return Checkpoint(self.folder, self.kind, MappingProxyType(index), reads)

    def weight_file_names(self) -> tuple[str, ...]:
        """The paths in the folder, with "/", of the files that hold the tensors, sorted."""
        files = {tensor.file for tensor in self.index.values()}
        return tuple(sorted(file.relative_to(self.folder).as_posix() for file in files))

    def digest(self) -> str:
        """64 hex digits that identify these weights in any folder; reads every byte of them.

        SHA-256 over one line "<sha256 of the file>  <path in the folder>" per weight file, sorted
        by path. Raises CheckpointError if a file cannot be read.
        """
        lines = (f"{_hash_file(self.folder / name)}  {name}\n" for name in self.weight_file_names())
        return sha256("".join(lines).encode()).hexdigest()


def open_checkpoint(folder: Path) -> Checkpoint:
    """Open a folder in any layout that `find_layout` knows, or a mixture of experts.

    Only headers are read. Raises CheckpointError, naming folder, file and tensor, if anything is
    missing, damaged, in a format that can run code, or outside the folder.
    """
    layout = find_moe_layout(folder) if is_moe_folder(folder) else find_layout(folder)
    headers = {name: read_header(regular_file(folder, name)) for name in layout.files}
    if layout.weight_map is not None:
        _check_index(folder, layout, headers)
    index: dict[str, TensorInfo] = {}
    for file, header in headers.items():
        subfolder = file.rpartition("/")[0]
        tensors = {
            f"{subfolder}/{name}" if subfolder else name: tensor for name, tensor in header.items()
        }
        _check_no_duplicates(folder / file, tensors.keys() & index.keys())
        index |= tensors
    if not index:
        raise CheckpointError(f"{folder} has weight files, but no tensor in them.")
    return Checkpoint(folder, layout.kind, MappingProxyType(index))


def _check_no_duplicates(file: Path, duplicates: set[str]) -> None:
    if duplicates:
        raise CheckpointError(
            f"{file} has {summarize_names(duplicates)}, which another file has as well."
        )


def _check_index(
    folder: Path, layout: Layout, headers: Mapping[str, Mapping[str, TensorInfo]]
) -> None:
    """Raise unless index and shards agree: a tensor in only one of them would be lost silently."""
    indexed = {(file, name) for name, file in (layout.weight_map or {}).items()}
    stored = {
        (file, name) for file, header in headers.items() if "/" not in file for name in header
    }
    for file, name in sorted(indexed - stored):
        raise CheckpointError(
            f"{folder / file} lacks tensor {safe_name(name)!r}, which the index puts there."
        )
    for file, name in sorted(stored - indexed):
        raise CheckpointError(
            f"{folder / file} has tensor {safe_name(name)!r}, which the index does not put there."
        )


def _hash_file(file: Path) -> str:
    try:
        return file_digest(file)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}.") from error


def read_tensor(tensor: TensorInfo, name: str) -> Array:
    """The values at a place on disk; CheckpointError, with `name`, if they cannot be read."""
    return _read(tensor, name, tensor.nbytes).reshape(tensor.shape)


def _read(tensor: TensorInfo, name: str, nbytes: int) -> Array:
    """The first bytes of a tensor, as values in a row."""
    raw = np.empty(nbytes, np.uint8)
    try:
        _read_into(raw, tensor)
    except (OSError, EOFError) as error:
        raise CheckpointError(
            f"{tensor.file}: tensor {safe_name(name)!r} cannot be read: {error}."
        ) from error
    return raw.view(DTYPES[tensor.dtype])


def _read_into(raw: Array, tensor: TensorInfo) -> None:
    view, done = raw.data, 0
    with tensor.file.open("rb", buffering=0) as stream:
        # One call returns at most 2 GiB.
        while done < len(raw):
            count = os.preadv(stream.fileno(), [view[done:]], tensor.start + done)
            if count == 0:
                raise EOFError("the file ends before it")
            done += count
