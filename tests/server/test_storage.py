"""Listing the large files of a repository, and deleting them for good."""

from __future__ import annotations

import httpx2
import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError


def put(api: HfApi, repo: str, name: str, content: bytes) -> str:
    return api.upload_file(path_or_fileobj=content, path_in_repo=name, repo_id=repo).oid


def stored(api: HfApi, repo: str) -> dict[str, int]:
    return {file.filename: file.size for file in api.list_lfs_files(repo)}


def delete(api: HfApi, repo: str, *names: str) -> None:
    files = [file for file in api.list_lfs_files(repo) if file.filename in names]
    api.permanently_delete_lfs_files(repo, files, rewrite_history=False)


def test_every_large_file_of_the_history_is_listed(api: HfApi, repo: str) -> None:
    put(api, repo, "a.bin", b"storage: old")
    put(api, repo, "sub/b.bin", b"storage: b")
    put(api, repo, "small.txt", b"small")
    api.delete_file("a.bin", repo)
    assert stored(api, repo) == {"a.bin": 12, "b.bin": 10}


def test_large_files_are_listed_in_pages(api: HfApi, repo: str, web: httpx2.Client) -> None:
    for number in range(3):
        put(api, repo, f"{number}.bin", f"storage: page {number}".encode())
    first = web.get(f"/api/models/{repo}/lfs-files?limit=2")
    assert len(first.json()) == 2
    assert len(web.get(first.links["next"]["url"]).json()) == 1


def test_deleting_a_file_keeps_its_commits(api: HfApi, repo: str) -> None:
    commit = put(api, repo, "gone.bin", b"storage: gone")
    put(api, repo, "kept.bin", b"storage: kept")
    delete(api, repo, "gone.bin")
    assert stored(api, repo) == {"kept.bin": 13}
    assert commit in {item.commit_id for item in api.list_repo_commits(repo)}
    assert set(api.list_repo_files(repo)) >= {"gone.bin", "kept.bin"}
    assert api.hf_hub_download(repo, "kept.bin")
    with pytest.raises(HfHubHTTPError, match="404"):
        api.hf_hub_download(repo, "gone.bin")


def test_a_deleted_content_can_be_uploaded_again(api: HfApi, repo: str) -> None:
    put(api, repo, "again.bin", b"storage: again")
    delete(api, repo, "again.bin")
    put(api, repo, "again2.bin", b"storage: again")
    assert api.hf_hub_download(repo, "again2.bin")


def test_a_file_that_another_repository_has_stays(api: HfApi, repo: str) -> None:
    other = f"{repo}-other"
    api.create_repo(other)
    for name in (repo, other):
        put(api, name, "shared.bin", b"storage: shared by two")
    delete(api, repo, "shared.bin")
    assert api.hf_hub_download(other, "shared.bin")


def test_a_repository_deletes_only_its_own_files(api: HfApi, repo: str, web: httpx2.Client) -> None:
    other = f"{repo}-other"
    api.create_repo(other)
    addition = CommitOperationAdd("theirs.bin", b"storage: on its way to a commit")
    api.preupload_lfs_files(other, [addition], free_memory=False)
    body = {"deletions": {"sha": [addition.upload_info.sha256.hex()], "rewriteHistory": False}}
    assert web.post(f"/api/models/{repo}/lfs-files/batch", json=body).status_code == 200
    api.create_commit(other, [addition], commit_message="theirs")
    assert api.hf_hub_download(other, "theirs.bin")


def test_readers_and_strangers_may_not_list_large_files(
    reader: HfApi, anonymous: HfApi, repo: str
) -> None:
    for api in (reader, anonymous):
        with pytest.raises(HfHubHTTPError, match=r"40[13]"):
            list(api.list_lfs_files(repo))


def test_history_is_never_rewritten(api: HfApi, repo: str) -> None:
    put(api, repo, "a.bin", b"storage: rewrite")
    with pytest.raises(HfHubHTTPError, match="never rewrites history"):
        api.permanently_delete_lfs_files(repo, list(api.list_lfs_files(repo)))
    assert stored(api, repo)


@pytest.mark.parametrize("body", [{}, {"deletions": []}, {"deletions": {"sha": [1]}}])
def test_an_invalid_deletion_is_refused(
    web: httpx2.Client, repo: str, body: dict[str, object]
) -> None:
    assert web.post(f"/api/models/{repo}/lfs-files/batch", json=body).status_code == 400
