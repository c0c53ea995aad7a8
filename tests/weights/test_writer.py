"""Files that are laid out like the base's."""

from __future__ import annotations

import errno
import json
import os
from collections import namedtuple
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from hubmerge.durable import hash_file
from hubmerge.errors import CheckpointError
from hubmerge.weights.checkpoint import open_checkpoint
from hubmerge.weights.writer import create_files_like, write_tensor

TENSORS = {
    "w": np.arange(6, dtype=np.float32).reshape(2, 3),
    "steps": np.array([3], np.int64),
    "mask": np.array([True, False]),
    "scalar": np.array(2.5, np.float32),
    "none": np.zeros((0, 2), np.float32),
    "half": np.array([1.5, -2, 3], ml_dtypes.bfloat16),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "base").mkdir()
    (tmp_path / "new").mkdir()
    return tmp_path


def copy_tensors(folder: Path, dtype: str | None = None) -> Path:
    """Copy base/ to new/ tensor by tensor."""
    base = open_checkpoint(folder / "base")
    targets = create_files_like(base, folder / "new", dtype)
    for name in reversed(list(targets)):  # in any order
        values = base.read(name)
        write_tensor(
            targets[name], values.astype(np.float16) if targets[name].dtype == "F16" else values
        )
    return folder / "new"


def test_same_values_give_the_same_bytes_and_order(folder: Path) -> None:
    save_file(TENSORS, folder / "base" / "model.safetensors")
    new = copy_tensors(folder)
    again = open_checkpoint(new)
    assert again.names() == open_checkpoint(folder / "base").names()
    for name, values in load_file(new / "model.safetensors").items():
        assert values.tobytes() == TENSORS[name].tobytes()
        assert values.shape == TENSORS[name].shape
    with safe_open(new / "model.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}
    first = hash_file(new / "model.safetensors")
    assert hash_file(copy_tensors(folder) / "model.safetensors") == first


def test_shards_and_index_are_kept(folder: Path) -> None:
    weight_map = {"w": "b.safetensors", "steps": "a.safetensors"}
    for name, file in weight_map.items():
        save_file({name: TENSORS[name]}, folder / "base" / file)
    index = {"metadata": {"total_size": 1, "other": "x"}, "weight_map": weight_map}
    (folder / "base" / "model.safetensors.index.json").write_text(json.dumps(index))
    new = copy_tensors(folder)
    assert json.loads((new / "model.safetensors.index.json").read_text()) == {
        "metadata": {"total_size": 6 * 4 + 8},
        "weight_map": weight_map,
    }
    assert open_checkpoint(new).names() == open_checkpoint(folder / "base").names()


def test_dtype_applies_to_floats_and_values_are_aligned(folder: Path) -> None:
    # F32 [3] then I64: as F16 the first would end at byte 6, where no int64 may start.
    header = {
        "odd": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
        "odder": {"dtype": "F32", "shape": [1], "data_offsets": [16, 20]},
        "steps": {"dtype": "I64", "shape": [1], "data_offsets": [20, 28]},
    }
    raw = json.dumps(header).encode()
    data = np.arange(5, dtype=np.float32).tobytes() + np.array([9], np.int64).tobytes()
    file = folder / "base" / "model.safetensors"
    file.write_bytes(len(raw).to_bytes(8, "little") + raw + data)
    new = copy_tensors(folder, "F16")
    checkpoint = open_checkpoint(new)
    assert {name: t.dtype for name, t in checkpoint.index.items()} == {
        "odd": "F16",
        "odder": "F16",
        "steps": "I64",
    }
    assert checkpoint.index["steps"].start % 8 == 0
    assert load_file(new / "model.safetensors")["odder"].tolist() == [4.0]
    assert load_file(new / "model.safetensors")["steps"].tolist() == [9]


def test_values_of_another_dtype_or_shape_are_not_written(folder: Path) -> None:
    save_file(TENSORS, folder / "base" / "model.safetensors")
    targets = create_files_like(open_checkpoint(folder / "base"), folder / "new")
    with pytest.raises(ValueError, match="float64"):
        write_tensor(targets["w"], np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"\(3, 2\)"):
        write_tensor(targets["w"], np.zeros((3, 2), np.float32))


def test_strided_values_are_written_in_order(folder: Path) -> None:
    save_file(TENSORS, folder / "base" / "model.safetensors")
    targets = create_files_like(open_checkpoint(folder / "base"), folder / "new")
    write_tensor(targets["w"], np.arange(6, dtype=np.float32).reshape(3, 2).T)
    written = load_file(folder / "new" / "model.safetensors")["w"]
    assert written.tolist() == [[0, 2, 4], [1, 3, 5]]


def test_disk_space_is_checked_before_writing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file(TENSORS, folder / "base" / "model.safetensors")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(100, 90, 10))
    with pytest.raises(CheckpointError, match="10 bytes free, and the weights need"):
        create_files_like(open_checkpoint(folder / "base"), folder / "new")
    assert list((folder / "new").iterdir()) == []


def test_disk_that_fills_up_gives_a_sentence(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file(TENSORS, folder / "base" / "model.safetensors")
    base = open_checkpoint(folder / "base")
    target = create_files_like(base, folder / "new")["w"]

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(CheckpointError, match=r"model.safetensors could not be written: No space"):
        write_tensor(target, base.read("w"))
