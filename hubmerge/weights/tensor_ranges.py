"""Read and write ranges of tensors: each thread has its own open files and reuses its memory."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path

import numpy as np

from hubmerge.errors import CheckpointError
from hubmerge.weights.atomic_folder import disk_errors_name
from hubmerge.weights.dtypes import DTYPES, Array
from hubmerge.weights.header import TensorInfo, safe_name

_MOST_FILES = 64


class TensorRanges:
    """Open files of checkpoints, for one thread; at most 64 are open at once."""

    def __init__(self) -> None:
        self._descriptors: OrderedDict[tuple[Path, int], int] = OrderedDict()

    def read(self, tensor: TensorInfo, name: str, start: int, stop: int, buffer: Array) -> Array:
        """Entries `start` to `stop` of a tensor in a row, in its dtype, in memory of `buffer`.

        `buffer` is an array of bytes with room for them. Raises CheckpointError, with `name`, if
        the file cannot be read.
        """
        dtype = DTYPES[tensor.dtype]
        raw = buffer[: (stop - start) * dtype.itemsize]
        try:
            descriptor = self._open(tensor.file, os.O_RDONLY)
            _read_fully(descriptor, raw, tensor.start + start * dtype.itemsize)
        except (OSError, EOFError) as error:
            raise CheckpointError(
                f"{tensor.file}: tensor {safe_name(name)!r} cannot be read: {error}."
            ) from error
        return raw.view(dtype)

    def write(self, target: TensorInfo, start: int, values: Array) -> None:
        """Write values at entry `start` of a tensor; they must have its dtype.

        Raises CheckpointError for disk errors.
        """
        if values.dtype != DTYPES[target.dtype]:
            raise ValueError(f"{target} got {values.dtype}")
        raw = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
        position = target.start + start * values.dtype.itemsize
        with disk_errors_name(target.file):
            descriptor, done = self._open(target.file, os.O_WRONLY), 0
            while done < len(raw):
                done += os.pwrite(descriptor, raw[done:], position + done)

    def close(self) -> None:
        """Close all files."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def _open(self, file: Path, flags: int) -> int:
        key = (file, flags)
        if key not in self._descriptors:
            if len(self._descriptors) == _MOST_FILES:
                os.close(self._descriptors.popitem(last=False)[1])
            self._descriptors[key] = os.open(file, flags | os.O_CLOEXEC)
        self._descriptors.move_to_end(key)
        return self._descriptors[key]


def _read_fully(descriptor: int, raw: Array, position: int) -> None:
    view, done = raw.data, 0
    while done < len(raw):
        count = os.preadv(descriptor, [view[done:]], position + done)
        if count == 0:
            raise EOFError("the file ends before it")
        done += count
