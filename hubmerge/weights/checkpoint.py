"""A checkpoint: a folder of safetensors files, of which one tensor at a time is read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType

import numpy as np

from hubmerge.durable import hash_file
from hubmerge.errors import CheckpointError
from hubmerge.kinds import MOE, CheckpointKind
from hubmerge.weights.dtypes import DTYPES, Array
from hubmerge.weights.header import Tensor, listed, read_header, shown
from hubmerge.weights.layout import Layout, find_layout, plain_file
from hubmerge.weights.moe_config import is_mixture
from hubmerge.weights.moe_layout import find_mixture


@dataclass(frozen=True)
class Checkpoint:
    """Weights on disk, of which only the headers have been read: `index` is name -> where it lies.

    `kind` is "full" for all weights of a model, "lora" for an adapter beside a base, "moe" for a
    mixture: experts name their tensors alike, so there each has its folder before its name, as in
    "experts/mnist/base_model.model.fc.lora_A.weight".
    """

    folder: Path
    kind: CheckpointKind
    index: Mapping[str, Tensor] = field(repr=False, hash=False)

    @property
    def is_moe(self) -> bool:
        return self.kind == MOE

    def names(self) -> tuple[str, ...]:
        """The names of all tensors, in the order they lie on disk, file after file."""
        return tuple(self.index)

    def tensor(self, name: str) -> Tensor:
        """Where a tensor lies; CheckpointError if there is none of that name."""
        if name not in self.index:
            raise CheckpointError(f"{self.folder} has no tensor {shown(name)!r}.")
        return self.index[name]

    def read(self, name: str) -> Array:
        """The values of one tensor, in its own dtype and shape, as an array of our own.

        Raises CheckpointError if there is no such tensor, or its bytes are gone.
        """
        tensor = self.tensor(name)
        raw = np.empty(tensor.nbytes, np.uint8)
        try:
            _read_into(raw, tensor)
        except (OSError, EOFError) as error:
            raise CheckpointError(
                f"{tensor.file}: tensor {shown(name)!r} cannot be read: {error}."
            ) from error
        return raw.view(DTYPES[tensor.dtype]).reshape(tensor.shape)

    def weight_names(self) -> tuple[str, ...]:
        """The files that hold the tensors by their path in the folder, with "/", sorted."""
        files = {tensor.file for tensor in self.index.values()}
        return tuple(sorted(file.relative_to(self.folder).as_posix() for file in files))

    def weight_files(self) -> tuple[Path, ...]:
        """The files that hold the tensors, sorted by name."""
        return tuple(self.folder / name for name in self.weight_names())

    def digest(self) -> str:
        """64 hex digits that name these weights wherever they lie; reads every byte of them.

        SHA-256 over one line "<sha256 of the file>  <its name>" per weight file, sorted by name,
        which in a mixture is its path in the folder. Raises CheckpointError if one cannot be read.
        """
        lines = (f"{_hash(self.folder / name)}  {name}\n" for name in self.weight_names())
        return sha256("".join(lines).encode()).hexdigest()


def open_checkpoint(folder: Path) -> Checkpoint:
    """Open a folder in any layout that `find_layout` knows, or a mixture, reading only headers.

    Raises CheckpointError, naming folder, file and tensor, where anything is missing, damaged, in
    a format that can run code, or outside the folder.
    """
    layout = find_mixture(folder) if is_mixture(folder) else find_layout(folder)
    headers = {name: read_header(plain_file(folder, name)) for name in layout.files}
    if layout.weight_map is not None:
        _check_index(folder, layout, headers)
    index: dict[str, Tensor] = {}
    for file, header in headers.items():
        inner = file.rpartition("/")[0]
        found = {f"{inner}/{name}" if inner else name: tensor for name, tensor in header.items()}
        _check_new(folder / file, found.keys() & index.keys())
        index |= found
    if not index:
        raise CheckpointError(f"{folder} has weight files, but no tensor in them.")
    return Checkpoint(folder, layout.kind, MappingProxyType(index))


def _check_new(file: Path, again: set[str]) -> None:
    if again:
        raise CheckpointError(f"{file} has {listed(again)}, which another file has as well.")


def _check_index(folder: Path, layout: Layout, headers: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Index and shards must say the same: a tensor in only one of them would be lost silently."""
    said = {(file, name) for name, file in (layout.weight_map or {}).items()}
    held = {(file, name) for file, header in headers.items() for name in header}
    for file, name in sorted(said - held):
        raise CheckpointError(
            f"{folder / file} lacks tensor {shown(name)!r}, which the index puts there."
        )
    for file, name in sorted(held - said):
        raise CheckpointError(
            f"{folder / file} has tensor {shown(name)!r}, which the index does not put there."
        )


def _hash(file: Path) -> str:
    try:
        return hash_file(file)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}.") from error


def _read_into(raw: Array, tensor: Tensor) -> None:
    view, done = raw.data, 0
    with tensor.file.open("rb", buffering=0) as stream:
        # One call returns at most 2 GiB.
        while done < tensor.nbytes:
            got = os.preadv(stream.fileno(), [view[done:]], tensor.start + done)
            if got == 0:
                raise EOFError("the file ends before it")
            done += got
