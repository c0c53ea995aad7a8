"""The store without HTTP: trees, revisions, and concurrent writers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
from dulwich.repo import Repo

from hubmerge.errors import HubmergeError
from hubmerge.server.content import AddFile, AddLargeFile, Change, Delete
from hubmerge.server.http_errors import (
    BadRequest,
    Conflict,
    EntryMissing,
    HttpError,
    RepoMissing,
    RevisionMissing,
    StaleParent,
)
from hubmerge.server.names import RepoId
from hubmerge.server.process import TINY_CLIP_FOLDER
from hubmerge.server.repository import TAG, Repository
from hubmerge.server.store import TINY_CLIP, RepositoryStore, seed

ID = RepoId("models", "me", "model")
WHEN = datetime(2026, 1, 2, tzinfo=UTC)


@pytest.fixture
def store(tmp_path: Path) -> RepositoryStore:
    store = RepositoryStore(tmp_path)
    store.clean_up()
    return store


@pytest.fixture
def repository(store: RepositoryStore) -> Repository:
    return store.create(ID, author="me", when=WHEN)


def put(repository: Repository, *changes: Change, parent: str = "") -> str:
    return repository.commit("main", changes, "m", author="me", when=WHEN, parent=parent)


def paths(repository: Repository, revision: str = "main") -> list[str]:
    return [file.path for file in repository.snapshot(revision).files()]


def test_files_are_added_replaced_and_deleted(repository: Repository) -> None:
    put(repository, AddFile("a/b/c.txt", b"1"), AddFile("a/d.txt", b"2"))
    put(repository, AddFile("a/d.txt", b"3"), Delete("a/b"))
    assert paths(repository) == [".gitattributes", "a/d.txt"]
    assert repository.snapshot("main").read("a/d.txt") == b"3"


def test_an_empty_folder_is_removed(repository: Repository) -> None:
    put(repository, AddFile("a/b/c.txt", b"1"))
    put(repository, Delete("a/b/c.txt"))
    assert [f.path for f in repository.snapshot("main").list_folder()] == [".gitattributes"]


def test_a_commit_can_replace_a_folder_by_a_file(repository: Repository) -> None:
    put(repository, AddFile("a/b", b"1"))
    put(repository, Delete("a"), AddFile("a", b"2"))
    assert repository.snapshot("main").read("a") == b"2"


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (AddFile("a", b"x"), BadRequest),
        (AddFile("a/b/c", b"x"), BadRequest),
        (Delete("nothing"), EntryMissing),
        (Delete("nothing/here"), EntryMissing),
        (AddLargeFile("w.bin", "0" * 64, 5), BadRequest),
        (AddLargeFile("w.bin", "0" * 64), BadRequest),
    ],
)
def test_an_invalid_commit_does_not_move_the_head(
    repository: Repository, change: Change, error: type[HttpError]
) -> None:
    head = put(repository, AddFile("a/b", b"1"))
    with pytest.raises(error):
        put(repository, AddFile("fine", b"x"), change)
    assert repository.snapshot("main").sha == head


def test_a_regular_file_that_is_a_pointer_needs_its_content(
    repository: Repository,
) -> None:
    forged = b"version https://git-lfs.github.com/spec/v1\noid sha256:%b\nsize 1\n" % (b"0" * 64)
    with pytest.raises(BadRequest, match="does not exist"):
        put(repository, AddFile("w.bin", forged))


def test_a_tag_never_moves(repository: Repository) -> None:
    first = put(repository, AddFile("a", b"1"))
    repository.create_ref(TAG, "step1", first)
    second = put(repository, AddFile("a", b"2"))
    with pytest.raises(Conflict, match="refs/tags/step1 already exists"):
        repository.create_ref(TAG, "step1", second)
    assert repository.refs(TAG) == {"step1": first}


def test_a_tag_with_a_message_resolves_to_its_commit(repository: Repository) -> None:
    sha = put(repository, AddFile("a", b"1"))
    repository.create_ref(TAG, "step1", "main", "hello", "me")
    assert repository.refs(TAG) == {"step1": sha}
    assert repository.snapshot("step1").sha == sha


def test_a_tag_name_cannot_be_below_another_tag(repository: Repository) -> None:
    repository.create_ref(TAG, "step", "main")
    with pytest.raises(Conflict):
        repository.create_ref(TAG, "step/1", "main")


def test_a_revision_is_a_branch_a_tag_a_ref_or_a_commit(repository: Repository) -> None:
    sha = put(repository, AddFile("a", b"1"))
    repository.create_ref(TAG, "t", "main")
    for revision in ("main", "HEAD", "t", "refs/heads/main", "refs/tags/t", sha, sha[:7]):
        assert repository.snapshot(revision).sha == sha
    tree = repository.snapshot("main").commit.tree
    for revision in ("nope", sha[:6], "0" * 40, tree, "../main", "config", ""):
        with pytest.raises(RevisionMissing):
            repository.snapshot(revision)


def test_commits_made_at_a_given_time_have_the_same_id_everywhere(tmp_path: Path) -> None:
    ids = set()
    for name in ("one", "two"):
        store = RepositoryStore(tmp_path / name)
        store.clean_up()
        ids.add(put(store.create(ID, author="me", when=WHEN), AddFile("a", b"1")))
    assert len(ids) == 1


def test_concurrent_writers_lose_no_commit(repository: Repository) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: put(repository, AddFile(f"{n}.txt", b"x")), range(40)))
    assert len(repository.snapshot("main").history(100)) == 41
    assert len(paths(repository)) == 41


def test_a_stale_parent_is_refused(repository: Repository) -> None:
    old = repository.snapshot("main").sha
    new = put(repository, AddFile("a", b"1"), parent=old[:5])
    with pytest.raises(StaleParent):
        put(repository, AddFile("a", b"2"), parent=old)
    assert repository.snapshot("main").sha == new


def test_a_writer_in_another_process_is_noticed(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by the lock in this process, but by the compare-and-swap of git."""
    from hubmerge.server.git import Git

    first, commit = repository.snapshot("main").sha, Git.write_commit

    def commit_after_rival(git: Git, *args: object) -> str:
        sha = commit(git, *args)  # type: ignore[arg-type]
        other = commit(git, repository.snapshot(first).commit.tree, first, "other", "x", WHEN)
        assert git.move_ref("refs/heads/main", first, other)
        return sha

    monkeypatch.setattr(Git, "write_commit", commit_after_rival)
    with pytest.raises(StaleParent):
        put(repository, AddFile("a", b"1"))
    assert repository.snapshot("main").commit.message == "other"


def test_concurrent_calls_create_one_repository(store: RepositoryStore) -> None:
    def create(_: int) -> bool:
        try:
            store.create(ID, author="me")
        except Conflict:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(create, range(8))) == 1
    assert list(store.tmp.iterdir()) == []


def test_a_failed_creation_leaves_nothing(store: RepositoryStore) -> None:
    with pytest.raises(BadRequest):
        store.create(ID, [AddLargeFile("w.bin", "0" * 64, 1)], author="me")
    with pytest.raises(RepoMissing):
        store.find(ID)
    assert list(store.tmp.iterdir()) == []


def test_clean_up_removes_what_a_killed_process_left(
    store: RepositoryStore, repository: Repository
) -> None:
    lock = repository.folder / "refs/heads/main.lock"
    lock.touch()
    (store.tmp / "half").touch()
    store.clean_up()
    assert not lock.exists()
    assert list(store.tmp.iterdir()) == []
    put(repository, AddFile("a", b"1"))


def test_git_objects_are_valid(repository: Repository) -> None:
    put(repository, AddFile("a/b", b"1"), AddFile("a.b", b"2"), AddFile("a0", b"3"))
    with Repo(str(repository.folder)) as repo:
        for oid in repo.object_store:
            repo[oid].check()


def test_the_seed_is_one_fixed_commit(store: RepositoryStore) -> None:
    seed(store, TINY_CLIP_FOLDER)
    first = store.find(TINY_CLIP).snapshot("main")
    assert {f.path for f in first.files() if f.lfs} == {"bpe.txt.gz", "open_clip_model.safetensors"}
    assert first.commit.date == datetime(2026, 1, 1, tzinfo=UTC)
    assert first.commit.parent is None
    seed(store, TINY_CLIP_FOLDER)
    assert store.find(TINY_CLIP).snapshot("main").sha == first.sha


def test_a_store_in_use_is_not_seeded(store: RepositoryStore, repository: Repository) -> None:
    seed(store, TINY_CLIP_FOLDER)
    assert store.count() == 1


def test_a_missing_seed_folder_is_an_error(store: RepositoryStore, tmp_path: Path) -> None:
    with pytest.raises(HubmergeError, match="missing"):
        seed(store, tmp_path / "nowhere")
