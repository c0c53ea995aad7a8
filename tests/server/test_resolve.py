"""Downloads: complete files, ranges, the right revision, and streaming."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import CommitOperationAdd, HfApi, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError

from hubmerge.server import ServerState
from hubmerge.server.files import parse_range

LARGE, SMALL = os.urandom(3_000_001), b"0123456789"


@pytest.fixture
def full(api: HfApi, repo: str) -> str:
    adds = [CommitOperationAdd("w.bin", LARGE), CommitOperationAdd("a/s.txt", SMALL)]
    api.create_commit(repo, adds, commit_message="m")
    return repo


@pytest.mark.parametrize(
    ("header", "byte_range"),
    [
        ("", range(0, 10)),
        ("bytes=0-3", range(0, 4)),
        ("bytes=4-", range(4, 10)),
        ("bytes=8-99", range(8, 10)),
        ("bytes=-3", range(7, 10)),
        ("bytes=-99", range(0, 10)),
        ("bytes=0-0", range(0, 1)),
        ("bytes=0-1,3-4", range(0, 10)),
        ("lines=0-1", range(0, 10)),
        ("bytes=-", range(0, 10)),
        ("bytes=10-", None),
        ("bytes=5-4", None),
        ("bytes=-0", None),
    ],
)
def test_a_range_header_is_parsed(header: str, byte_range: range | None) -> None:
    assert parse_range(header, 10) == byte_range


@pytest.mark.parametrize(("path", "content"), [("w.bin", LARGE), ("a/s.txt", SMALL)])
def test_a_file_or_a_range_is_downloaded(
    web: httpx2.Client, full: str, path: str, content: bytes
) -> None:
    url = f"/{full}/resolve/main/{path}"
    full_file = web.get(url)
    assert full_file.status_code == 200
    assert full_file.content == content
    part = web.get(url, headers={"Range": "bytes=3-6"})
    assert part.status_code == 206
    assert part.content == content[3:7]
    assert part.headers["Content-Range"] == f"bytes 3-6/{len(content)}"
    rest = web.get(url, headers={"Range": f"bytes={len(content) - 2}-"})
    assert rest.status_code == 206
    assert rest.content == content[-2:]
    beyond = web.get(url, headers={"Range": f"bytes={len(content)}-"})
    assert beyond.status_code == 416
    assert beyond.headers["Content-Range"] == f"bytes */{len(content)}"


def test_if_range_of_another_file_returns_the_full_file(web: httpx2.Client, full: str) -> None:
    headers = {"Range": "bytes=3-6", "If-Range": '"another"'}
    assert web.get(f"/{full}/resolve/main/a/s.txt", headers=headers).content == SMALL


def test_head_has_the_headers_and_no_body(web: httpx2.Client, full: str) -> None:
    head = web.head(f"/{full}/resolve/main/w.bin")
    sha256 = hashlib.sha256(LARGE).hexdigest()
    assert head.status_code == 200
    assert head.content == b""
    assert head.headers["X-Repo-Commit"] == web.get(f"/api/models/{full}").json()["sha"]
    assert head.headers["ETag"] == head.headers["X-Linked-ETag"] == f'"{sha256}"'
    assert head.headers["Content-Length"] == head.headers["X-Linked-Size"] == str(len(LARGE))
    assert head.headers["Accept-Ranges"] == "bytes"
    assert "X-Xet-Hash" not in head.headers
    assert "Content-Encoding" not in head.headers
    small = web.head(f"/{full}/resolve/main/a/s.txt").headers
    blob = hashlib.sha1(b"blob 10\0" + SMALL).hexdigest()
    assert small["ETag"] == f'"{blob}"'
    assert "X-Linked-Size" not in small


def test_an_unchanged_file_is_not_sent_again(web: httpx2.Client, full: str) -> None:
    url = f"/{full}/resolve/main/w.bin"
    etag = web.head(url).headers["ETag"]
    assert web.get(url, headers={"If-None-Match": etag}).status_code == 304
    assert web.get(url, headers={"If-None-Match": '"old"'}).status_code == 200


def test_the_client_downloads_what_was_sent(api: HfApi, full: str, tmp_path: Path) -> None:
    file = Path(api.hf_hub_download(full, "w.bin", cache_dir=tmp_path))
    assert hashlib.sha256(file.read_bytes()).digest() == hashlib.sha256(LARGE).digest()
    url = hf_hub_url(full, "w.bin", endpoint=api.endpoint)
    assert get_hf_file_metadata(url).size == len(LARGE)


def test_clients_cache_that_a_file_is_missing(api: HfApi, full: str, tmp_path: Path) -> None:
    with pytest.raises(EntryNotFoundError):
        api.hf_hub_download(full, "nope", cache_dir=tmp_path)
    assert [path.name for path in tmp_path.glob("*/.no_exist/*/*")] == ["nope"]


def test_two_revisions_are_two_snapshots(api: HfApi, repo: str, tmp_path: Path) -> None:
    for step in (1, 2):
        add = CommitOperationAdd("w.bin", b"step %d" % step)
        commit = api.create_commit(repo, [add], commit_message="m")
        api.create_tag(repo, tag=f"step{step}", revision=commit.oid)
    for step in (1, 2):
        local = api.snapshot_download(repo, revision=f"step{step}", cache_dir=tmp_path)
        assert (Path(local) / "w.bin").read_bytes() == b"step %d" % step


def test_a_name_without_owner_is_not_found(api: HfApi, tmp_path: Path) -> None:
    with pytest.raises(RepositoryNotFoundError):
        api.hf_hub_download("gpt2", "config.json", cache_dir=tmp_path)


def test_a_large_file_is_not_read_into_memory(hub: ServerState, api: HfApi, repo: str) -> None:
    """A 100 MB file is uploaded and downloaded while the server grows by much less."""
    size, before = 100 << 20, peak_bytes(hub.pid)
    with open(hub.data / "large.bin", "wb+") as file:
        file.truncate(size)
        api.upload_file(path_or_fileobj=file, path_in_repo="w.bin", repo_id=repo)
    url = f"{hub.url}/{repo}/resolve/main/w.bin"
    with httpx2.stream("GET", url, timeout=None) as response:
        assert sum(map(len, response.iter_bytes(1 << 20))) == size
    assert peak_bytes(hub.pid) - before < size // 4


def peak_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))
