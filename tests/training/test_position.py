"""A position on disk is the position that was written, or none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hubmerge.errors import CheckpointError
from hubmerge.manifest import Point
from hubmerge.training.position import NAME, Position, drop_position, read_position, write_position

POINT = Point(0, None, 0.1 + 0.2, 400, 0.0)
POSITION = Position(
    3, (POINT,), (1.1, 2 / 3), 1.1, {"weight.a": torch.tensor([0.1]), "step.a": torch.tensor(3.0)}
)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    write_position(tmp_path, "run", 8, POSITION)
    found = read_position(tmp_path, "run")
    assert found is not None
    line, position = found
    assert line == 8
    assert (position.step, position.curve, position.losses, position.first) == (
        3, (POINT,), (1.1, 2 / 3), 1.1
    )  # fmt: skip
    assert {name: tensor.tolist() for name, tensor in position.state.items()} == {
        "weight.a": [0.10000000149011612], "step.a": 3.0
    }  # fmt: skip
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [NAME]


def test_the_position_of_another_run_is_none(tmp_path: Path) -> None:
    assert read_position(tmp_path, "run") is None
    write_position(tmp_path, "other", 8, POSITION)
    assert read_position(tmp_path, "run") is None
    drop_position(tmp_path)
    drop_position(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", [b"", b"\x08\0\0\0\0\0\0\0{}      ", b"junk" * 100])
def test_a_damaged_position_says_what_to_do(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / NAME).write_bytes(damage)
    with pytest.raises(CheckpointError, match="no state that hubmerge wrote") as error:
        read_position(tmp_path, "run")
    assert "--no-resume" in error.value.hint


def test_a_cut_position_is_damaged(tmp_path: Path) -> None:
    write_position(tmp_path, "run", 8, POSITION)
    whole = (tmp_path / NAME).read_bytes()
    (tmp_path / NAME).write_bytes(whole[:-1])
    with pytest.raises(CheckpointError):
        read_position(tmp_path, "run")


def test_a_disk_that_refuses(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="could not be written") as error:
        write_position(tmp_path / "missing", "run", 8, POSITION)
    assert "Make room" in error.value.hint
