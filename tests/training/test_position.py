"""Writing, reading and removing positions of training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hubmerge.errors import CheckpointError
from hubmerge.training.position import (
    STATE_FILE,
    Position,
    read_position,
    remove_position,
    write_position,
)
from hubmerge.training_curve import ValidationPoint

POINT = ValidationPoint(0, None, 0.1 + 0.2, 400, 0.0)
POSITION = Position(
    3, (POINT,), (1.1, 2 / 3), 1.1, {"weight.a": torch.tensor([0.1]), "step.a": torch.tensor(3.0)}
)


def test_a_written_position_is_read_back(tmp_path: Path) -> None:
    write_position(tmp_path, "run", 8, POSITION)
    result = read_position(tmp_path, "run")
    assert result is not None
    line, position = result
    assert line == 8
    assert (position.step, position.curve, position.losses, position.first_loss) == (
        3, (POINT,), (1.1, 2 / 3), 1.1
    )  # fmt: skip
    assert {name: tensor.tolist() for name, tensor in position.state.items()} == {
        "weight.a": [0.10000000149011612], "step.a": 3.0
    }  # fmt: skip
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [STATE_FILE]


def test_the_position_of_another_run_is_not_used(tmp_path: Path) -> None:
    assert read_position(tmp_path, "run") is None
    write_position(tmp_path, "other", 8, POSITION)
    assert read_position(tmp_path, "run") is None
    remove_position(tmp_path)
    remove_position(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", [b"", b"\x08\0\0\0\0\0\0\0{}      ", b"junk" * 100])
def test_a_damaged_position_has_a_hint(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / STATE_FILE).write_bytes(damage)
    with pytest.raises(CheckpointError, match="not a training state written by hubmerge") as error:
        read_position(tmp_path, "run")
    assert "--no-resume" in error.value.hint


def test_a_truncated_position_is_damaged(tmp_path: Path) -> None:
    write_position(tmp_path, "run", 8, POSITION)
    content = (tmp_path / STATE_FILE).read_bytes()
    (tmp_path / STATE_FILE).write_bytes(content[:-1])
    with pytest.raises(CheckpointError):
        read_position(tmp_path, "run")


def test_a_failing_write(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="could not be written") as error:
        write_position(tmp_path / "missing", "run", 8, POSITION)
    assert "Free disk space" in error.value.hint
