"""Commits over HTTP: atomic, and one at a time."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
)
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RevisionNotFoundError

NOT_BASE64 = {"key": "file", "value": {"path": "a", "content": "*", "encoding": "base64"}}
HEADER = {"key": "header", "value": {"summary": "m"}}


def post(web: httpx2.Client, repo: str, *lines: object, branch: str = "main") -> httpx2.Response:
    body = "\n".join(map(json.dumps, lines))
    return web.post(f"/api/models/{repo}/commit/{branch}", content=body)


def test_small_and_large_files_in_one_commit(api: HfApi, repo: str, tmp_path: Path) -> None:
    weights = os.urandom(5 << 20)
    (tmp_path / "w").write_bytes(weights)
    commit = api.create_commit(
        repo,
        [
            CommitOperationAdd("model.safetensors", tmp_path / "w"),
            CommitOperationAdd("config.json", b"{}"),
            CommitOperationAdd("empty.bin", b""),
            CommitOperationAdd("ä ж/b c.txt", b"text"),
        ],
        commit_message="title",
        commit_description="run: 7",
    )
    assert commit.commit_url == f"{api.endpoint}/{repo}/commit/{commit.oid}"
    first, _initial = api.list_repo_commits(repo)
    assert (first.commit_id, first.title, first.message) == (commit.oid, "title", "run: 7")
    local = Path(api.snapshot_download(repo, cache_dir=tmp_path / "cache"))
    assert (local / "model.safetensors").read_bytes() == weights
    assert (local / "ä ж/b c.txt").read_bytes() == b"text"
    assert (local / "empty.bin").read_bytes() == b""


def test_an_unchanged_folder_makes_no_second_commit(api: HfApi, repo: str, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/w.bin").write_bytes(b"w" * 5000)
    (tmp_path / "a.txt").write_text("a")
    first = api.upload_folder(repo_id=repo, folder_path=tmp_path)
    assert api.upload_folder(repo_id=repo, folder_path=tmp_path).oid == first.oid
    assert api.list_repo_files(repo) == [".gitattributes", "a.txt", "sub/w.bin"]


def test_gitignored_files_are_left_out(api: HfApi, repo: str, tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text("*.log\n")
    (tmp_path / "a.log").write_text("a")
    (tmp_path / "a.txt").write_text("a")
    api.upload_folder(repo_id=repo, folder_path=tmp_path)
    assert api.list_repo_files(repo) == [".gitattributes", ".gitignore", "a.txt"]


def test_files_and_folders_are_deleted_and_copied(api: HfApi, repo: str) -> None:
    paths = ("a/1.txt", "a/2.txt", "w.bin", "gone.txt")
    api.create_commit(repo, [CommitOperationAdd(p, p.encode()) for p in paths], commit_message="m")
    changes = [
        CommitOperationDelete("a/"),
        CommitOperationDelete("gone.txt"),
        CommitOperationCopy("w.bin", "copy.bin"),
    ]
    api.create_commit(repo, changes, commit_message="m")
    assert api.list_repo_files(repo) == [".gitattributes", "copy.bin", "w.bin"]
    with pytest.raises(EntryNotFoundError):
        api.delete_file("gone.txt", repo)


def test_a_parent_that_is_not_the_head_is_refused(api: HfApi, repo: str) -> None:
    old = api.model_info(repo).sha
    assert old
    add = [CommitOperationAdd("a.txt", b"1")]
    head = api.create_commit(repo, add, commit_message="m", parent_commit=old).oid
    with pytest.raises(HfHubHTTPError) as refused:
        api.create_commit(
            repo, [CommitOperationAdd("a.txt", b"2")], commit_message="m", parent_commit=old
        )
    assert refused.value.response.status_code == 412
    assert "The branch was updated since you opened this page" in str(refused.value)
    assert api.model_info(repo).sha == head


def test_one_of_sixteen_commits_with_the_same_parent_wins(web: httpx2.Client, repo: str) -> None:
    parent = web.get(f"/api/models/{repo}").json()["sha"]
    header = {"key": "header", "value": {"summary": "m", "parentCommit": parent}}

    def push(number: int) -> int:
        line = {"key": "file", "value": {"path": "a.txt", "content": str(number)}}
        return post(web, repo, header, line).status_code

    with ThreadPoolExecutor(16) as pool:
        answers = sorted(pool.map(push, range(16)))
    assert answers == [200] + [412] * 15
    assert len(web.get(f"/api/models/{repo}/commits/main").json()) == 2


def test_one_of_sixteen_tags_with_the_same_name_wins(web: httpx2.Client, repo: str) -> None:
    def tag(_: int) -> int:
        return web.post(f"/api/models/{repo}/tag/main", json={"tag": "step1"}).status_code

    with ThreadPoolExecutor(16) as pool:
        assert sorted(pool.map(tag, range(16))) == [200] + [409] * 15


def test_a_commit_needs_an_existing_branch(api: HfApi, repo: str) -> None:
    api.create_tag(repo, tag="v1")
    for revision in ("nope", "v1"):
        with pytest.raises(RevisionNotFoundError):
            api.upload_file(path_or_fileobj=b"x", path_in_repo="a", repo_id=repo, revision=revision)


def lfs(**changed: object) -> dict[str, object]:
    value = {"path": "w.bin", "algo": "sha256", "oid": "0" * 64, "size": 3, **changed}
    return {"key": "lfsFile", "value": value}


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        ([], 400),
        ([{"key": "file", "value": {"path": "a", "content": "x"}}], 400),
        ([{"key": "header", "value": {"summary": ""}}], 400),
        ([HEADER, NOT_BASE64], 400),
        ([HEADER, {"key": "nonsense", "value": {}}], 400),
        ([HEADER, {"key": "file", "value": "x"}], 400),
        ([HEADER, ["file"]], 400),
        ([HEADER, lfs()], 400),
        ([HEADER, lfs(oid="../../../etc/passwd")], 400),
        ([HEADER, lfs(size="many")], 400),
        ([HEADER, {"key": "deletedFile", "value": {"path": "none"}}], 404),
        ([HEADER, {"key": "file", "value": {"path": "a", "content": "x" * (15 << 20)}}], 413),
    ],
)  # fmt: skip
def test_an_invalid_commit_changes_nothing(
    web: httpx2.Client, repo: str, lines: list[object], status: int
) -> None:
    head = web.get(f"/api/models/{repo}").json()["sha"]
    answer = post(web, repo, *lines)
    assert answer.status_code == status
    assert answer.json()["error"]
    assert web.get(f"/api/models/{repo}").json()["sha"] == head
