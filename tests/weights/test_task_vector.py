"""Task vectors: an expert minus its base."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from hubmerge.errors import CheckpointError
from hubmerge.weights.checkpoint import Checkpoint, open_checkpoint
from hubmerge.weights.difference import subtract
from hubmerge.weights.task_vector import TaskVector


def write_checkpoint(folder: Path, **tensors: np.ndarray) -> Checkpoint:
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    return open_checkpoint(folder)


def test_delta_of_each_dtype(tmp_path: Path) -> None:
    base = write_checkpoint(
        tmp_path / "base", a=np.float32([1, 2]), d=np.float64([1]), n=np.array([1])
    )
    expert = write_checkpoint(
        tmp_path / "expert", a=np.float32([1.5, 0]), d=np.float64([1 + 1e-12]), n=np.array([1])
    )
    vector = TaskVector(base, expert)
    assert set(vector.names()) == {"a", "d"}
    assert vector.delta("a").tolist() == [0.5, -2]
    assert vector.delta("a").dtype == np.float32
    assert vector.delta("d").dtype == np.float64
    assert vector.delta("d")[0] == (1 + 1e-12) - 1


def test_equal_tensors_with_infinities_give_zeros(tmp_path: Path) -> None:
    mask = np.float32([0, -np.inf, np.nan])
    base = write_checkpoint(tmp_path / "base", a=mask, b=mask)
    vector = TaskVector(base, write_checkpoint(tmp_path / "expert", a=mask, b=mask + np.float32(1)))
    assert vector.delta("a").tolist() == [0, 0, 0]
    assert vector.delta("b")[0] == 1
    assert np.isnan(vector.delta("b")[1:]).all()


def test_base_is_read_once_for_many_experts(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", a=np.float32([1, 2]))
    values = base.read("a")
    for number in range(2):
        expert = write_checkpoint(tmp_path / f"{number}", a=np.float32([number, 5]))
        delta = TaskVector(base, expert).delta_from(values, "a")
        assert delta.tolist() == TaskVector(base, expert).delta("a").tolist() == [number - 1, 3]
    assert values.tolist() == [1, 2]


def test_dtypes_may_differ_and_are_not_rounded_first(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", a=np.array([1.0], ml_dtypes.bfloat16))
    expert = write_checkpoint(tmp_path / "expert", a=np.array([1 + 2**-30], np.float64))
    assert TaskVector(base, expert).delta("a").tolist() == [2**-30]


def test_tensor_that_does_not_fit_is_named(tmp_path: Path) -> None:
    base = write_checkpoint(
        tmp_path / "base", a=np.zeros((2, 3), np.float32), b=np.zeros(1, np.float32)
    )
    expert = write_checkpoint(tmp_path / "expert", a=np.zeros((3, 2), np.float32))
    with pytest.raises(CheckpointError, match=r"'a' is F32 \[3, 2\], and F32 \[2, 3\] in the base"):
        TaskVector(base, expert).delta("a")
    with pytest.raises(CheckpointError, match="expert has no tensor 'b'"):
        TaskVector(base, expert).delta("b")


def test_overflow_gives_inf_without_a_warning() -> None:
    most = np.float32([3e38])
    assert subtract(most, -most, np.dtype(np.float32)).tolist() == [np.inf]
