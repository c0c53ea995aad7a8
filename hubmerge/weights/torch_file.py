"""Read the tensors of a file written by torch.save, without torch and without unpickling.

There are two formats. Since torch 1.6 it is a zip archive of uncompressed entries: NAME/data.pkl,
and NAME/data/KEY for the bytes of each storage. Before, it was five pickles in a row (a magic
number, a version, facts about the machine, the object, the keys of its storages), and then the
storages, each as a count of 8 bytes and its values. Source: torch/serialization.py.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from hubmerge.errors import CheckpointError
from hubmerge.weights.dtypes import DTYPES, Array
from hubmerge.weights.header import safe_name
from hubmerge.weights.pickle_objects import Storage, StoredTensor
from hubmerge.weights.pickle_values import MAX_BYTES, read_pickle

_MAGIC = 0x1950A86A20F9469CFC6C
_MAX_ENTRIES = 200_000
_MAX_NODES, _MAX_DEPTH = 2_000_000, 32
_HINT = "Save it again: torch.save(model.state_dict(), FILE)."
Place = tuple[int, int]  # offset and length in bytes


@dataclass(frozen=True)
class TorchFile:
    """A file of torch: the value in it, and where the bytes of each storage are."""

    path: Path
    value: Any = field(repr=False)
    storages: Mapping[str, Place] = field(repr=False)

    def read(self, tensor: StoredTensor) -> Array:
        """The values of one tensor, contiguous; CheckpointError if it is outside of its storage."""
        dtype = DTYPES[tensor.storage.dtype]
        start, length = self.storages.get(tensor.storage.key, (0, -1))
        last = tensor.offset + sum(
            (size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True)
        )
        count = prod(tensor.shape)
        if count and (last + 1) * dtype.itemsize > length:
            raise CheckpointError(f"{self.path} has a tensor outside of its storage.", _HINT)
        if not count:
            return np.zeros(tensor.shape, dtype)
        size = (last + 1 - tensor.offset) * dtype.itemsize
        with self.path.open("rb") as stream:
            stream.seek(start + tensor.offset * dtype.itemsize)
            raw = np.frombuffer(stream.read(size), np.uint8)
        if len(raw) < size:
            raise CheckpointError(f"{self.path} ends inside a tensor.", _HINT)
        values: Array = raw.view(dtype)
        strides = [stride * dtype.itemsize for stride in tensor.strides]
        view = np.lib.stride_tricks.as_strided(values, tensor.shape, strides, writeable=False)
        return np.array(view, order="C")


def open_torch_file(path: Path) -> TorchFile:
    """Read the structure of a file, without its values.

    Raises CheckpointError for a format that is not torch's, an archive whose entries are compressed
    or overlap, and a pickle that holds anything but plain data and tensors.
    """
    try:
        with path.open("rb") as stream:
            start = stream.read(4)
            stream.seek(0)
            if start[:2] == b"PK":
                return _open_archive(path)
            if start[:1] == b"\x80":
                return _open_legacy(path, stream)
    except (OSError, zipfile.BadZipFile, struct.error, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}.", _HINT) from error
    raise CheckpointError(f"{path} is not a file of torch.save.", _HINT)


def find_tensors(value: Any) -> Iterator[tuple[tuple[str, ...], StoredTensor]]:
    """Every tensor in a value, with the keys that lead to it; ValueError for too deep a value."""
    pending: list[tuple[tuple[str, ...], Any]] = [((), value)]
    for _ in range(_MAX_NODES):
        if not pending:
            return
        keys, node = pending.pop()
        if len(keys) > _MAX_DEPTH:
            raise ValueError("its values are nested too deeply")
        if isinstance(node, StoredTensor):
            yield keys, node
        elif isinstance(node, dict):
            pending += [((*keys, str(key)), inner) for key, inner in reversed(node.items())]
        elif isinstance(node, list | tuple):
            pending += [((*keys, str(n)), inner) for n, inner in reversed([*enumerate(node)])]
    raise ValueError("it has too many values")


def _open_archive(path: Path) -> TorchFile:
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if len(entries) > _MAX_ENTRIES:
            raise CheckpointError(f"{path} has too many entries for a file of torch.", _HINT)
        pickles = [entry for entry in entries if entry.filename.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise CheckpointError(f"{path} is an archive, but not one of torch.save.", _HINT)
        root = pickles[0].filename.removesuffix("data.pkl")
        for entry in entries:
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
                raise CheckpointError(f"{path} is compressed, which torch never does.", _HINT)
        if pickles[0].file_size > MAX_BYTES:
            raise CheckpointError(f"{path} has too long a pickle for a state dict.", _HINT)
        value = read_pickle(archive.read(pickles[0]), str(path))
        order = [entry for entry in entries if entry.filename == f"{root}byteorder"]
        if order and (order[0].file_size > 16 or archive.read(order[0]) != b"little"):
            raise CheckpointError(f"{path} has its values in big-endian order.", _HINT)
    size = path.stat().st_size
    storages = {}
    with path.open("rb") as stream:
        for entry in entries:
            key = entry.filename.removeprefix(f"{root}data/")
            if key.isdigit():
                storages[key] = _place(path, stream, entry, size)
    return _checked(TorchFile(path, value, storages))


def _place(path: Path, stream: BinaryIO, entry: zipfile.ZipInfo, size: int) -> Place:
    """Where the bytes of an entry are: after its local header, whose lengths may differ."""
    stream.seek(entry.header_offset)
    header = stream.read(30)
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise CheckpointError(f"{path} is damaged.", _HINT)
    name_length, extra_length = struct.unpack("<HH", header[26:30])
    start = entry.header_offset + 30 + name_length + extra_length
    if start + entry.file_size > size:
        raise CheckpointError(f"{path} is cut short.", _HINT)
    return start, entry.file_size


def _open_legacy(path: Path, stream: BinaryIO) -> TorchFile:
    where = str(path)
    if read_pickle(stream, where) != _MAGIC:
        raise CheckpointError(f"{path} is a pickle, but not one of torch.save.", _HINT)
    read_pickle(stream, where)  # the version of the format
    facts = read_pickle(stream, where)
    if isinstance(facts, dict) and not facts.get("little_endian", True):
        raise CheckpointError(f"{path} has its values in big-endian order.", _HINT)
    value = read_pickle(stream, where)
    keys = read_pickle(stream, where)
    used = {tensor.storage.key: tensor.storage for _, tensor in _tensors(value, path)}
    storages: dict[str, Place] = {}
    size = path.stat().st_size
    for key in keys if isinstance(keys, list) else []:
        (count,) = struct.unpack("<q", stream.read(8))
        storage = used.get(key, Storage(str(key), "U8", 0))
        length = count * DTYPES[storage.dtype].itemsize
        if key not in used or count != storage.count or stream.tell() + length > size:
            raise CheckpointError(
                f"{path} has a storage that no tensor uses, or ends early.", _HINT
            )
        storages[key] = (stream.tell(), length)
        stream.seek(length, 1)
    return _checked(TorchFile(path, value, storages))


def _checked(file: TorchFile) -> TorchFile:
    """Raise CheckpointError for a storage that is missing, or of another size than it says."""
    for keys, tensor in _tensors(file.value, file.path):
        storage = tensor.storage
        _, length = file.storages.get(storage.key, (0, -1))
        name = safe_name(".".join(keys))
        if length != storage.count * DTYPES[storage.dtype].itemsize:
            raise CheckpointError(f"{file.path} has no whole storage for {name}.", _HINT)
        if prod(tensor.shape) > storage.count:
            raise CheckpointError(
                f"{file.path} repeats the values of {name}, which may fill the memory.", _HINT
            )
    return file


def _tensors(value: Any, path: Path) -> Iterator[tuple[tuple[str, ...], StoredTensor]]:
    try:
        yield from find_tensors(value)
    except ValueError as error:
        raise CheckpointError(f"{path} cannot be imported: {error}.", _HINT) from error
