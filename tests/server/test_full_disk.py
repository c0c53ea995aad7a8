"""A disk that is full: a sentence at once, no retries, and a Hub that starts."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import huggingface_hub.utils._http
import pytest
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError

from hubmerge.server import ServerState
from hubmerge.server.disk import check_space
from hubmerge.server.http_errors import DiskFull
from tests.server.conftest import ROOT, send_signal_and_wait, state_of_process, wait_until

MIB = 1 << 20


@pytest.fixture
def limited(tmp_path: Path) -> Iterator[ServerState]:
    """A Hub that can write no file of more than 1 MiB, as if the disk ended there."""
    data = ["--data", str(tmp_path / "data"), "--no-seed"]
    command = [sys.executable, "-m", "hubmerge.server", *data]
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (MIB, MIB))
    process = subprocess.Popen(command, cwd=ROOT, preexec_fn=limit)
    yield wait_until(lambda: state_of_process(process, tmp_path / "data"))
    process.kill()
    process.wait()


@pytest.mark.parametrize("disable_xet", [True, False])
def test_an_upload_that_does_not_fit_is_refused_without_retries(
    limited: ServerState, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, disable_xet: bool
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", disable_xet)
    waits: list[float] = []
    monkeypatch.setattr(huggingface_hub.utils._http.time, "sleep", waits.append)
    api = HfApi(endpoint=limited.url, token=limited.token)
    api.create_repo("me/m")
    file = tmp_path / "w.bin"
    file.write_bytes(os.urandom(3 * MIB))
    with pytest.raises((RuntimeError, OSError)) as refused:
        api.upload_file(path_or_fileobj=file, path_in_repo="w.bin", repo_id="me/m")
    assert waits == []
    if disable_xet:
        assert "hubmerge hub gc" in str(refused.value.__cause__)
    assert list((limited.data / "tmp").iterdir()) == []
    assert api.list_repo_files("me/m") == [".gitattributes"]


def test_what_cannot_fit_is_refused_before_it_is_sent(tmp_path: Path) -> None:
    check_space(tmp_path, 1)
    with pytest.raises(DiskFull, match="does not fit"):
        check_space(tmp_path, 1 << 60)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MiB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m,mode=700", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("this user may not mount a disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow
def test_a_hub_starts_on_a_full_disk_and_makes_space(small_disk: Path) -> None:
    data = small_disk / "data"
    command = [sys.executable, "-m", "hubmerge.server", "--data", str(data), "--no-seed"]

    def start() -> tuple[subprocess.Popen[bytes], HfApi]:
        process = subprocess.Popen(command, cwd=ROOT)
        state = wait_until(lambda: state_of_process(process, data))
        return process, HfApi(endpoint=state.url, token=state.token)

    process, api = start()
    api.create_repo("me/large")
    api.upload_file(path_or_fileobj=os.urandom(MIB // 4), path_in_repo="w.bin", repo_id="me/large")
    send_signal_and_wait(process.pid)
    process.wait()
    (data / "state.json").unlink()
    fill = small_disk / "fill"
    with fill.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    process, api = start()
    assert api.list_repo_files("me/large") == [".gitattributes", "w.bin"]
    with pytest.raises(HfHubHTTPError, match="507") as refused:
        api.upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id="me/large")
    assert "free" in str(refused.value)
    api.delete_repo("me/large")
    fill.unlink()
    api.create_repo("me/small")
    process.terminate()
    process.wait()
