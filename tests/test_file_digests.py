"""Digests are remembered while a file does not change, and files are hashed several at a time."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from hubmerge import file_digests
from hubmerge.file_digests import FILE, DigestCache, OnRead, hash_ahead


@pytest.fixture
def old(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files count as old at once."""
    monkeypatch.setattr(file_digests, "_MIN_AGE_NS", -(10**18))


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files whose bytes were read."""
    read: list[Path] = []
    compute = file_digests.hash_file

    def hash_file(path: Path, on_read: OnRead | None = None) -> str:
        read.append(path)
        return compute(path, on_read)

    monkeypatch.setattr(file_digests, "hash_file", hash_file)
    return read


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_file_is_read_once_also_by_the_next_process(
    tmp_path: Path, old: None, hashed: list[Path]
) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"abc")
    for _ in range(2):
        cache = DigestCache(tmp_path / "home" / FILE)
        assert cache.hash(file) == cache.hash(file) == sha256(file)
    assert hashed == [file]


def test_a_changed_file_is_read_again_even_with_its_old_time(
    tmp_path: Path, old: None, hashed: list[Path]
) -> None:
    file, cache = tmp_path / "weights", DigestCache(tmp_path / FILE)
    file.write_bytes(b"abc")
    cache.hash(file)
    status = file.stat()
    while file.stat().st_ctime_ns == status.st_ctime_ns:  # the clock of a disk is coarse
        file.write_bytes(b"abd")
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert cache.hash(file) == sha256(file)
    assert len(hashed) == 2


def test_a_new_file_is_not_remembered(tmp_path: Path, hashed: list[Path]) -> None:
    file, cache = tmp_path / "weights", DigestCache(tmp_path / FILE)
    file.write_bytes(b"abc")
    assert cache.hash(file) == cache.hash(file) == sha256(file)
    assert len(hashed) == 2
    assert not (tmp_path / FILE).exists()


@pytest.mark.parametrize(
    "text", ["[1, 2", "[]\n{}\n[1, 2, 3, 4, 5, 6]\n", '["a"]\nnull\n', "\x00\xff"]
)
def test_a_damaged_cache_is_ignored(
    text: str, tmp_path: Path, old: None, hashed: list[Path]
) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"abc")
    (tmp_path / FILE).write_text(text)
    assert DigestCache(tmp_path / FILE).hash(file) == sha256(file)
    assert DigestCache(tmp_path / FILE).hash(file) == sha256(file)


def test_a_home_that_cannot_be_written(tmp_path: Path, old: None) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"abc")
    assert DigestCache(file / "x" / FILE).hash(file) == sha256(file)


def test_the_cache_stays_small(tmp_path: Path, old: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_digests, "_MOST_ENTRIES", 10)
    for number in range(25):
        (tmp_path / f"{number}").write_bytes(b"%d" % number)
        DigestCache(tmp_path / FILE).hash(tmp_path / f"{number}")
    assert len((tmp_path / FILE).read_text().splitlines()) <= 11


def test_nothing_is_remembered_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_digests, "_cache", None)
    (tmp_path / "file").write_bytes(b"abc")
    assert file_digests.file_digest(tmp_path / "file") == sha256(tmp_path / "file")


@pytest.fixture
def remembering(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Digests are remembered in a file of this test."""
    monkeypatch.setattr(file_digests, "_cache", DigestCache(tmp_path / FILE))


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Three files that are hashed by threads, the last of more bytes than are read at once."""
    monkeypatch.setattr(file_digests, "_MIN_BYTES_FOR_THREADS", 0)
    paths = [tmp_path / name for name in "abc"]
    for path, size in zip(paths, (0, 1, 600_000), strict=True):
        path.write_bytes(bytes(range(256)) * (size // 256) + bytes(size % 256))
    return paths


def test_files_are_hashed_together(files: list[Path]) -> None:
    digests = file_digests.file_digests([*files, files[0]])
    assert digests == {path: sha256(path) for path in files}


def test_files_that_were_hashed_ahead_are_not_read_again(
    files: list[Path], remembering: None, old: None, hashed: list[Path]
) -> None:
    hash_ahead([*files, files[0].with_name("missing")])
    assert file_digests.file_digests(files) == {path: sha256(path) for path in files}
    assert sorted(hashed) == files


def test_a_digest_that_is_not_remembered_is_not_computed_ahead(
    files: list[Path], remembering: None, hashed: list[Path]
) -> None:
    hash_ahead(files)
    assert not hashed


def test_the_progress_of_hashing_is_in_bytes(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_digests, "_REPORT_EVERY_S", 0.0)
    reports: list[tuple[str, int, int]] = []
    file_digests.file_digests(files, lambda *report: reports.append(report))
    assert {(stage, total) for stage, _, total in reports} == {("hash", 600_001)}
    done = [count for _, count, _ in reports]
    assert done == sorted(done)
    assert done[-1] == 600_001


def test_hashing_ends_when_it_is_interrupted(
    tmp_path: Path, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_digests, "_REPORT_EVERY_S", 0.0)
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(1 << 40)  # a hole: it takes no space, and would take minutes to hash

    def interrupt(stage: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        file_digests.file_digests([*files, tmp_path / "huge"], interrupt)


def test_a_file_that_cannot_be_read_is_an_error(files: list[Path]) -> None:
    with pytest.raises(OSError, match="missing"):
        file_digests.file_digests([*files, files[0].with_name("missing")])


def test_a_file_that_was_written_here_is_remembered_at_once(
    files: list[Path], remembering: None, hashed: list[Path]
) -> None:
    assert file_digests.hash_written(files) == {path: sha256(path) for path in files}
    assert file_digests.file_digests(files) == {path: sha256(path) for path in files}
    assert sorted(hashed) == files


def test_a_file_on_a_disk_that_counts_in_seconds_is_not_remembered_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, cache = tmp_path / "weights", DigestCache(tmp_path / FILE)
    file.write_bytes(b"abc")
    seconds = (1, 2, 3, 1_000_000_000, 2_000_000_000)
    monkeypatch.setattr(file_digests, "_key", lambda path: seconds)
    cache.add(file, sha256(file))
    assert not (tmp_path / FILE).exists()
