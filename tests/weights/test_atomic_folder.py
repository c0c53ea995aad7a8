"""Writing folders atomically."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from hubmerge.errors import Busy, CheckpointError
from hubmerge.weights.atomic_folder import atomic_folder, check_target


def write(folder: Path, text: str = "new") -> None:
    (folder / "model.safetensors").write_text(text)
    (folder / "sub").mkdir(exist_ok=True)
    (folder / "sub" / "x.json").write_text("{}")


def write_and_fail(out: Path, error: BaseException) -> None:
    with atomic_folder(out, replace=True) as folder:
        write(folder)
        raise error


def write_twice(folder: Path, other: Path) -> None:
    write(folder)
    other.mkdir()
    write(other, "theirs")


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_folder_appears_complete(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "deep" / "out") as folder:
        write(folder)
        assert not (tmp_path / "deep" / "out").exists()
    assert names(tmp_path / "deep") == ["out"]
    assert names(tmp_path / "deep" / "out") == ["model.safetensors", "sub"]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_error_leaves_nothing(error: BaseException, tmp_path: Path) -> None:
    with pytest.raises(type(error)):
        write_and_fail(tmp_path / "out", error)
    assert names(tmp_path) == []


def test_error_keeps_the_old_folder(tmp_path: Path) -> None:
    old = tmp_path / "out"
    old.mkdir()
    write(old, "old")
    with pytest.raises(ValueError, match="no"):
        write_and_fail(old, ValueError("no"))
    assert names(tmp_path) == ["out"]
    assert (old / "model.safetensors").read_text() == "old"


def test_replaces_only_with_replace(tmp_path: Path) -> None:
    old = tmp_path / "out"
    old.mkdir()
    write(old, "old")
    (old / "stale.safetensors").touch()
    with pytest.raises(CheckpointError, match="not empty"), atomic_folder(old):
        pytest.fail("the block must not run")
    with atomic_folder(old, replace=True) as folder:
        write(folder)
    assert names(tmp_path) == ["out"]
    assert names(old) == ["model.safetensors", "sub"]


def test_empty_folder_is_used(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with atomic_folder(tmp_path / "out") as folder:
        write(folder)
    assert names(tmp_path / "out") == ["model.safetensors", "sub"]


def test_folder_that_appears_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    with (
        pytest.raises(CheckpointError, match="not empty"),
        atomic_folder(tmp_path / "out") as folder,
    ):
        write_twice(folder, tmp_path / "out")
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out" / "model.safetensors").read_text() == "theirs"


def test_folder_of_something_else_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    with (
        pytest.raises(CheckpointError, match="no checkpoint"),
        atomic_folder(tmp_path / "out", True),
    ):
        pytest.fail("the block must not run")
    assert names(tmp_path / "out") == ["thesis.tex"]


@pytest.mark.parametrize("make", [Path.touch, lambda path: path.symlink_to(path.parent)])
def test_target_that_is_not_a_folder(make: object, tmp_path: Path) -> None:
    make(tmp_path / "out")  # type: ignore[operator]
    with (
        pytest.raises(CheckpointError, match="not a folder"),
        atomic_folder(tmp_path / "out", True),
    ):
        pytest.fail("the block must not run")


def test_second_writer_gets_busy(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "out") as folder:
        write(folder)
        with (
            pytest.raises(Busy, match="out is being written by another process"),
            atomic_folder(tmp_path / "out"),
        ):
            pytest.fail("the block must not run")
        assert names(folder) == ["model.safetensors", "sub"]
    assert names(tmp_path) == ["out"]


def test_files_of_a_killed_writer_are_removed(tmp_path: Path) -> None:
    left = tmp_path / ".out.partial"
    left.mkdir()
    write(left)
    (left / "other.safetensors").touch()
    with atomic_folder(tmp_path / "out") as folder:
        assert names(folder) == []
        write(folder)
    assert names(tmp_path) == ["out"]


def test_link_as_partial_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    (tmp_path / ".out.partial").symlink_to("precious")
    with pytest.raises(CheckpointError), atomic_folder(tmp_path / "out"):
        pytest.fail("the block must not run")
    assert names(tmp_path / "precious") == ["file"]


NO_SPACE = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_full_disk_gives_a_sentence_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise NO_SPACE

    monkeypatch.setattr(os, "fsync", full)
    with (
        pytest.raises(CheckpointError, match=r"out could not be written: No space left"),
        atomic_folder(tmp_path / "out") as folder,
    ):
        write(folder)
    assert names(tmp_path) == []


def test_error_of_the_block_is_not_changed(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left") as caught:
        write_and_fail(tmp_path / "out", NO_SPACE)
    assert caught.value is NO_SPACE
    assert names(tmp_path) == []


def test_target_is_checked_without_writing(tmp_path: Path) -> None:
    check_target(tmp_path / "deep" / "out")
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="file is not a folder"):
        check_target(tmp_path / "file" / "deep" / "out")
    with pytest.raises(CheckpointError, match="not empty"):
        check_target(tmp_path)
    assert names(tmp_path) == ["file"]


def test_failed_rename_restores_the_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "out"
    old.mkdir()
    write(old, "old")
    rename = os.rename

    def failing(source: Path, target: Path) -> None:
        if str(source).endswith(".partial"):
            raise OSError(errno.EIO, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(CheckpointError), atomic_folder(old, replace=True) as folder:
        write(folder)
    assert names(tmp_path) == ["out"]
    assert (old / "model.safetensors").read_text() == "old"


def test_everything_is_flushed_before_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, rename = os.fsync, os.rename

    def synced(descriptor: int) -> None:
        events.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def renamed(source: Path, target: Path) -> None:
        events.append("rename")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", renamed)
    with atomic_folder(tmp_path / "out") as folder:
        write(folder)
    before = events[: events.index("rename")]
    assert set(before) == {"model.safetensors", "x.json", "sub", ".out.partial"}
    assert events[events.index("rename") :] == ["rename", tmp_path.name]
