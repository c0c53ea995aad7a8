"""Files besides the weights are copied byte for byte, and no link leaves the folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from hubmerge.errors import CheckpointError
from hubmerge.weights.side_files import copy_side_files, other_files, side_files

FILES = ("1_Pooling/config.json", "config.json", "tokenizer.json", "vocab.bpe")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    for name in (*FILES, "README.md", "model.safetensors", "modeling.py", "onnx/model.onnx"):
        path = tmp_path / "base" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (tmp_path / "new").mkdir()
    return tmp_path / "base"


def test_files_and_subfolders_are_copied(base: Path) -> None:
    assert side_files(base) == FILES
    new = base.with_name("new")
    copy_side_files(base, new, {"config.json": b"{}"})
    copied = {p.relative_to(new).as_posix(): p.read_text() for p in new.rglob("*") if p.is_file()}
    assert copied == {name: name for name in FILES} | {"config.json": "{}"}
    assert other_files(base) == ("model.safetensors", "modeling.py", "onnx/model.onnx")


@pytest.mark.parametrize("name", ["tokenizer.json", "1_Pooling/config.json"])
def test_a_link_out_of_the_folder_is_refused(base: Path, name: str) -> None:
    secret = base.with_name("token")
    secret.write_text("secret")
    (base / name).unlink()
    (base / name).symlink_to(secret)
    with pytest.raises(CheckpointError, match="symbolic link"):
        copy_side_files(base, base.with_name("new"))
    assert list(base.with_name("new").iterdir()) == []


def test_a_link_to_a_folder_is_not_followed(base: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "secret.json").write_text("{}")
    (base / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert side_files(base) == FILES
