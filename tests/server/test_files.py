"""Listing files: by folder, by page, or by name."""

from __future__ import annotations

import httpx2
import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import EntryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile, RepoFolder


@pytest.fixture
def full(api: HfApi, repo: str) -> str:
    paths = ["a/b/c.txt", "a/d.txt", "w.bin", "z.txt"]
    adds = [CommitOperationAdd(path, path.encode()) for path in paths]
    api.create_commit(repo, adds, commit_message="m")
    return repo


def test_a_tree_is_listed_flat_deep_or_from_a_folder(api: HfApi, full: str) -> None:
    def listed(**options: object) -> list[str]:
        return [item.path for item in api.list_repo_tree(full, **options)]

    assert listed() == [".gitattributes", "a", "w.bin", "z.txt"]
    assert listed(path_in_repo="a") == ["a/b", "a/d.txt"]
    deep = [".gitattributes", "a", "a/b", "a/b/c.txt", "a/d.txt", "w.bin", "z.txt"]
    assert listed(recursive=True) == deep
    assert listed(path_in_repo="a/b", recursive=True) == ["a/b/c.txt"]


def test_items_have_size_and_content_id(api: HfApi, full: str) -> None:
    items = {item.path: item for item in api.list_repo_tree(full)}
    large, small, folder = items["w.bin"], items["z.txt"], items["a"]
    assert isinstance(large, RepoFile)
    assert large.lfs
    assert large.size == large.lfs.size == 5
    assert isinstance(small, RepoFile)
    assert small.lfs is None
    assert small.size == 5
    assert isinstance(folder, RepoFolder)
    assert folder.tree_id


def test_items_have_their_last_commit(api: HfApi, full: str) -> None:
    api.upload_file(
        path_or_fileobj=b"2", path_in_repo="a/d.txt", repo_id=full, commit_message="second"
    )
    items = api.list_repo_tree(full, recursive=True, expand=True)
    titles = {item.path: item.last_commit.title for item in items if item.last_commit}
    assert titles["a/d.txt"] == titles["a"] == "second"
    assert titles["a/b/c.txt"] == titles["z.txt"] == "m"
    assert titles[".gitattributes"] == "initial commit"


def test_a_long_tree_has_pages_pinned_to_one_commit(api: HfApi, repo: str) -> None:
    adds = [CommitOperationAdd(f"{n:04}.txt", b"x") for n in range(60)]
    api.create_commit(repo, adds, commit_message="m")
    pages = api.list_repo_tree(repo, expand=True)
    first = next(iter(pages)).path
    api.delete_files(repo, ["*.txt"])
    assert [first, *(item.path for item in pages)] == [
        ".gitattributes",
        *(f"{n:04}.txt" for n in range(60)),
    ]


def test_more_than_a_thousand_files_are_listed(api: HfApi, repo: str) -> None:
    adds = [CommitOperationAdd(f"{n:04}.txt", b"x") for n in range(1005)]
    api.create_commit(repo, adds, commit_message="m")
    assert len(api.list_repo_files(repo)) == 1006


def test_missing_folders_and_revisions_are_errors(
    api: HfApi, web: httpx2.Client, full: str
) -> None:
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree(full, path_in_repo="nope"))
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree(full, path_in_repo="z.txt"))
    with pytest.raises(RevisionNotFoundError):
        list(api.list_repo_tree(full, revision="nope"))
    assert api.file_exists(full, "z.txt")
    assert not api.file_exists(full, "a")


def test_unknown_paths_are_left_out(api: HfApi, full: str) -> None:
    items = api.get_paths_info(full, ["z.txt", "nope", "a", "a/b/c.txt", "../x"], expand=True)
    assert [item.path for item in items] == ["z.txt", "a", "a/b/c.txt"]
    assert all(item.last_commit and item.last_commit.title == "m" for item in items)
